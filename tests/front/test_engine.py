"""One request as a line of a batch has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from client import AsyncFakeTransport, FakeServer
from client.openai.chat import CHAT
from client.openai.completions import COMPLETIONS
from client.openai.errors import ApiError
from front.engine import Engine

CHAT_BODY = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}


def answer(
    server: FakeServer, body: Mapping[str, Any], url: str = CHAT.path, left_ms: float | None = None
) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        engine = Engine(AsyncFakeTransport(server))
        return await engine.answer(url, json.dumps(body).encode(), left_ms)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "body"), [(CHAT.path, CHAT_BODY), (COMPLETIONS.path, {"prompt": "a", "max_tokens": 2})]
)
def test_a_line_is_answered_as_its_endpoint_would(url: str, body: dict[str, Any]) -> None:
    server = FakeServer()
    answered = answer(server, body, url)
    assert answered["usage"]["completion_tokens"] == 2
    assert answered["service_tier"] == "flex"
    assert server.calls[0].inputs["priority_class"] == "be"


@pytest.mark.parametrize("tier", ["flex", "auto", "default", None])
def test_a_line_may_name_best_effort_or_no_tier(tier: str | None) -> None:
    assert answer(FakeServer(), CHAT_BODY | {"service_tier": tier, "model": "bros_be"})["service_tier"] == "flex"


@pytest.mark.parametrize(
    ("asked_ms", "left_ms", "due_ms"), [(None, 50.0, 50.0), (20, 50.0, 20.0), (90, 50.0, 50.0), (90, None, 90.0)]
)
def test_the_sooner_of_two_deadlines_counts(asked_ms: int | None, left_ms: float | None, due_ms: float) -> None:
    server = FakeServer()
    answer(server, CHAT_BODY | {"deadline_ms": asked_ms}, left_ms=left_ms)
    assert server.calls[0].inputs["deadline_ms"] == due_ms


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
        ("/v1/embeddings", {}, "url"),
        (CHAT.path, {"stream": True}, "stream"),
        (CHAT.path, {"service_tier": "priority"}, "service_tier"),
        (CHAT.path, {"model": "bros_rt"}, "model"),
        (CHAT.path, {"deadline_ms": "soon"}, "deadline_ms"),
        (CHAT.path, {"deadline_ms": True}, "deadline_ms"),
    ],
)
def test_what_no_batch_may_hold_is_refused(url: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        answer(FakeServer(), CHAT_BODY | fields, url, left_ms=50.0)
    assert caught.value.param == param


def test_a_refusal_of_one_choice_cancels_the_rest() -> None:
    server = FakeServer(token_s=0.001, max_concurrent=2)
    with pytest.raises(ApiError, match="2 requests are open"):
        answer(server, CHAT_BODY | {"n": 3})
    assert server.open_ids == set()
