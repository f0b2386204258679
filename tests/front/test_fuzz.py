"""Requests made from the OpenAPI document, and spoilt: every answer is a 2xx, or a 4xx with one of OpenAI's errors.

One application takes them all. After each hundred a canary asks for what it always asks for: nothing else is disturbed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import FakeServer
from front.app import make_app
from front.settings import Settings
from tests.front.bodies_made import (
    BODIES,
    Sent,
    headers,
    json_contents,
    parameters,
    paths,
    spoilt,
    uploads,
)
from tests.front.door import CHAT_PATH, COMPLETIONS_PATH, error_of, opened

DOCUMENT = make_app(Settings()).openapi()
OPERATIONS = [(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods]
FEW, MANY = 20, 150  # cases of an endpoint: in `make test`, and in `make test-full`
FEW_BODIES, MANY_BODIES = 60, 800  # of one that generates
CANARY_PERIOD = 100
EMPTY_LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}\n'


@dataclass
class House:
    """One application for all cases, in an event loop of its own."""

    runner: asyncio.Runner
    http: httpx2.AsyncClient
    server: FakeServer
    file_ids: list[str]
    num_cases: int = 0

    def send(self, sent: Sent) -> httpx2.Response:
        return self.runner.run(self.http.request(sent.method, sent.url, **sent.options))

    def check(self, sent: Sent) -> None:
        """Send a case, look at its answer, and now and then at whether another still gets its own."""
        answer = self.send(sent)
        assert answer.status_code < 500, (sent, answer.text)
        if answer.status_code >= 300:
            assert error_of(answer)["message"], sent
        self.num_cases += 1
        if self.num_cases % CANARY_PERIOD == 0:
            self.assert_undisturbed()

    def assert_undisturbed(self) -> None:
        body = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 3, "service_tier": "priority"}
        answer = self.send(Sent("POST", CHAT_PATH, {"json": body}))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "one two three "


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    server = FakeServer()
    at = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        _, http = runner.run(stack.enter_async_context(opened(server, at)))
        house = House(runner, http, server, [])
        files = {"file": ("in.jsonl", EMPTY_LINE), "purpose": (None, "batch")}
        house.file_ids.append(house.send(Sent("POST", "/v1/files", {"files": files})).json()["id"])
        yield house
        house.assert_undisturbed()
        runner.run(stack.aclose())
    assert server.open_ids == set()


def cases(method: str, path: str, operation: dict[str, Any], file_ids: Sequence[str]) -> st.SearchStrategy[Sent]:
    """Return requests to one operation of the document: as it wants them, spoilt, and nonsense."""
    url, query = paths(path, operation, file_ids), parameters(operation)
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        return st.builds(Sent, st.just(method), url, uploads())
    if "application/json" in content:
        bodies = st.builds(lambda body: {"json": body}, spoilt(content["application/json"]["schema"], file_ids))
        with_headers = st.builds(lambda body, extra: body | {"headers": extra}, bodies, headers())
        return st.builds(Sent, st.just(method), url, st.one_of(bodies, bodies, with_headers, json_contents()))
    return st.builds(Sent, st.just(method), url, st.builds(lambda q, h: {"params": q, "headers": h}, query, headers()))


def run_cases(house: House, method: str, path: str, num_cases: int) -> None:
    strategy = cases(method, path, DOCUMENT["paths"][path][method.lower()], house.file_ids)

    @settings(max_examples=num_cases)
    @given(strategy)
    def run(sent: Sent) -> None:
        house.check(sent)

    run()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_is_answered_with_a_failure(house: House, method: str, path: str) -> None:
    run_cases(house, method, path, FEW_BODIES if path in BODIES else FEW)
    assert house.num_cases >= FEW


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_none_of_thousands_is_answered_with_a_failure(house: House, method: str, path: str) -> None:
    run_cases(house, method, path, MANY_BODIES if path in BODIES else MANY)


def test_the_long_form_has_two_thousand_cases() -> None:
    num_bodies = sum(path in BODIES for _, path in OPERATIONS)
    assert {path for _, path in OPERATIONS} >= BODIES >= {CHAT_PATH, COMPLETIONS_PATH}
    assert num_bodies * MANY_BODIES + (len(OPERATIONS) - num_bodies) * MANY >= 2000
