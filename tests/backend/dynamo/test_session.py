"""Requests of a worker on a real engine process: answered, cancelled, refused, and moved when the engine goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.config import ConfigFile
from backend.core.errors import InvalidRequestError
from backend.dynamo.session import MoveElsewhere, Session
from backend.executors.sim import SimSettings
from backend.link.engine_link import EngineLink
from backend.link.validate import Defaults
from backend.server.socket_server import EngineServer
from backend.wire import names as wire
from tests.backend.serving import linked, make_file, running

SLOW = SimSettings(coefficients=(5e-3, 0.0, 0.0, 0.0, 0.0))  # 5 ms a step


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    return make_file(tmp_path, SLOW, be_coalesce_s=0.0)


@pytest.fixture
def server(file: ConfigFile) -> Iterator[EngineServer]:
    with running(file) as server:
        yield server


@pytest.fixture
def link(file: ConfigFile, server: EngineServer) -> Iterator[EngineLink]:
    assert server is not None
    with linked(file) as link:
        yield link


@pytest.fixture
def session(file: ConfigFile, link: EngineLink) -> Session:
    return Session(link, Defaults("bros", wire.PER_REQUEST, file.config.service))


def request(max_tokens: int, **options: Any) -> dict[str, Any]:
    return {"token_ids": [5, 6, 7], "sampling_options": options, "stop_conditions": {"max_tokens": max_tokens}}


async def collect(session: Session, asked: dict[str, Any], **metadata: str) -> list[dict[str, Any]]:
    return [chunk async for chunk in session.answer(asked, metadata)]


def test_an_answer_has_all_its_tokens_and_one_end(session: Session) -> None:
    chunks = asyncio.run(collect(session, request(20), **{"policy-class": "rt"}))
    assert sum(len(chunk["token_ids"]) for chunk in chunks) == 20
    assert [chunk for chunk in chunks if "finish_reason" in chunk] == chunks[-1:]
    assert chunks[-1]["completion_usage"]["completion_tokens"] == 20


def test_many_requests_are_answered_at_once(session: Session) -> None:
    async def run() -> list[int]:
        answers = await asyncio.gather(*(collect(session, request(10 + i)) for i in range(8)))
        return [sum(len(chunk["token_ids"]) for chunk in chunks) for chunks in answers]

    assert asyncio.run(run()) == list(range(10, 18))


def test_an_iterator_that_is_closed_cancels_its_request(session: Session, server: EngineServer) -> None:
    async def run() -> None:
        answer = session.answer(request(5000), {})
        await anext(answer)
        await answer.aclose()
        while num_open(server):
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(run(), 20.0))
    assert num_open(server) == 0


def num_open(server: EngineServer) -> int:
    engine = server._engine
    assert engine is not None
    counts = engine.scheduler.stats().requests.values()  # type: ignore[attr-defined]  # the simulated executor's engine
    return sum(count.num_waiting + count.num_running + count.num_preempted for count in counts)


def test_a_wrong_request_is_the_clients_error(session: Session) -> None:
    with pytest.raises(InvalidRequestError, match="top_p"):
        asyncio.run(collect(session, request(4, top_p=3.0)))
    with pytest.raises(InvalidRequestError, match="99999999"):
        asyncio.run(collect(session, {**request(4), "token_ids": [99_999_999]}))


def test_a_stream_whose_engine_goes_is_to_move(session: Session, link: EngineLink) -> None:
    async def run() -> None:
        answer = session.answer(request(5000), {})
        await anext(answer)
        await asyncio.to_thread(link.close)
        async for _ in answer:
            pass

    with pytest.raises(MoveElsewhere, match="ENGINE_DOWN"):
        asyncio.run(run())
    with pytest.raises(MoveElsewhere, match="no engine"):
        asyncio.run(collect(session, request(4)))
