"""One request as a line of a batch has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from client import AsyncFakeTransport, FakeServer
from client.generation import PriorityClass
from front.chat import CHAT
from front.completions import COMPLETIONS
from front.engine import Engine
from front.errors import ApiError

CHAT_BODY = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}


def answer(
    server: FakeServer, body: Mapping[str, Any], url: str, priority_class: PriorityClass | None = None
) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        engine = Engine(AsyncFakeTransport(server), "be")
        return await engine.answer(body, url, priority_class=priority_class)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "body"), [(CHAT.path, CHAT_BODY), (COMPLETIONS.path, {"prompt": "a", "max_tokens": 2})]
)
def test_a_line_is_answered_as_its_endpoint_would(url: str, body: dict[str, Any]) -> None:
    answered = answer(FakeServer(), body, url)
    assert answered["usage"]["completion_tokens"] == 2
    assert answered["service_tier"] == "default"


def test_the_class_of_a_batch_wins_over_its_lines() -> None:
    server = FakeServer()
    answered = answer(server, CHAT_BODY | {"service_tier": "priority"}, CHAT.path, "be")
    assert answered["service_tier"] == "flex"
    assert server.calls[0].inputs["priority_class"] == "be"


@pytest.mark.parametrize(
    ("url", "fields", "param"), [("/v1/embeddings", {}, "url"), (CHAT.path, {"stream": True}, "stream")]
)
def test_what_no_batch_may_hold_is_refused(url: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        answer(FakeServer(), CHAT_BODY | fields, url)
    assert caught.value.param == param


def test_a_refusal_of_one_choice_cancels_the_rest() -> None:
    server = FakeServer(token_s=0.001, max_concurrent=2)
    with pytest.raises(ApiError, match="2 requests are open"):
        answer(server, CHAT_BODY | {"n": 3}, CHAT.path)
    assert server.open_ids == set()
