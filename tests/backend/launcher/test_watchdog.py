"""A server that gives no sign of life is told from one that is late, and from one that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from backend.config import REPOSITORY_ROOT
from backend.launcher import watchdog
from backend.launcher.canary import _frame
from backend.launcher.endpoints import Endpoints
from backend.launcher.launch import Launch
from backend.launcher.triton_install import TritonInstall
from backend.launcher.watchdog import Silence
from backend.wire.names import MODELS

MAX_INFLIGHT = 128
CONFIG = 'parameters {{ key: "max_inflight" value {{ string_value: "{}" }} }}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


def make_launch(tmp_path: Path, http_port: int = 1, grpc_port: int = 1, metrics_port: int = 1) -> Launch:
    for model, bound in (("bros", 0), ("bros_be", MAX_INFLIGHT)):
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "config.pbtxt").write_text(CONFIG.format(bound))
    at = Endpoints("127.0.0.1", http_port, grpc_port, metrics_port)
    return Launch(tmp_path, tmp_path, TritonInstall(tmp_path), at, 1.0, 1.0, canary_timeout_s=0.1)


GRPC_ANSWER = _frame(4, 0, 0, b"") + _frame(1, 4, 1, b"") + _frame(0, 0, 1, b"alive")


class FakeTriton:
    """Answers canaries with `answers`, one after the other and the last again and again, None not at all; over gRPC if
    `has_grpc`. Has executed `step` requests more at each look, and holds `num_be`."""

    def __init__(self, *answers: bytes | None, step: int = 0, num_be: int = 0, has_grpc: bool = True) -> None:
        self.answers = list(answers)
        self.step = step
        self.num_be = num_be
        self.has_grpc = has_grpc
        self.num_executed = 0
        self.canaries: list[bytes] = []

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.canaries.append(await reader.readline())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    async def grpc(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.canaries.append(await reader.readuntil(b"inspect"))
        if self.has_grpc:
            writer.write(GRPC_ANSWER)
        else:
            await reader.read()
        writer.close()

    async def metrics(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        self.num_executed += self.step
        counts = "".join(
            f'nv_inference_exec_count{{model="{name}",version="1"}} {self.num_executed}\n' for name in MODELS
        )
        writer.write(f'{OK.decode()}{counts}bros_requests{{class="be",state="running"}} {self.num_be}\n'.encode())
        writer.close()


def with_fake(fake: FakeTriton, tmp_path: Path, look: Callable[[Launch], Awaitable[object]]) -> object:
    async def run() -> object:
        async with AsyncExitStack() as stack:
            ports = []
            for serve in (fake.http, fake.grpc, fake.metrics):
                server = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0))
                ports.append(server.sockets[0].getsockname()[1])
            found = await look(make_launch(tmp_path, *ports))
            await asyncio.sleep(0.05)  # the fake sees that its last client has left
            return found

    return asyncio.run(run())


def look_at(model: str) -> Callable[[Launch], Awaitable[object]]:
    return lambda launch: watchdog._silence(launch, model, watchdog.watched_models(launch)[model])


@pytest.mark.parametrize(
    ("fake", "path"),
    [
        (FakeTriton(OK), None),
        (FakeTriton(REFUSED), None),
        (FakeTriton(None, OK), None),
        (FakeTriton(None, has_grpc=False, step=1), None),
        (FakeTriton(None, has_grpc=False), "HTTP"),
        (FakeTriton(None), "HTTP"),
        (FakeTriton(OK, has_grpc=False), "gRPC"),
        (FakeTriton(OK, has_grpc=False, step=1), "gRPC"),
    ],
    ids=["answers", "refuses", "answers when asked again", "late but executing", "hangs", "HTTP hangs", "gRPC hangs",
         "gRPC hangs while others are served"],
)  # fmt: skip
def test_silent_is_what_neither_answers_nor_executes(fake: FakeTriton, path: str | None, tmp_path: Path) -> None:
    is_total = not fake.has_grpc and fake.answers == [None]
    assert with_fake(fake, tmp_path, look_at("bros")) == (path and Silence("bros", path, is_total))
    assert fake.canaries[0] == b"POST /v2/models/bros/generate HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("num_be", "silence"), [(MAX_INFLIGHT - 1, Silence("bros_be", "HTTP", True)), (MAX_INFLIGHT, None)]
)
def test_a_model_that_holds_requests_back_is_not_silent(num_be: int, silence: Silence | None, tmp_path: Path) -> None:
    fake = FakeTriton(None, has_grpc=False, num_be=num_be)
    assert with_fake(fake, tmp_path, look_at("bros_be")) == silence


def test_a_silent_model_is_named(tmp_path: Path) -> None:
    silent = FakeTriton(None, has_grpc=False)
    assert with_fake(silent, tmp_path, watchdog.first_silence) == Silence("bros", "HTTP", True)


def test_a_server_that_is_busy_with_http_alone_gets_more_time(tmp_path: Path) -> None:
    busy = FakeTriton(None)
    assert with_fake(busy, tmp_path, watchdog.first_silence) == Silence("bros", "HTTP", False)
    num_http = sum(line.startswith(b"POST /v2/models/bros/") for line in busy.canaries)
    assert num_http == watchdog.NUM_HTTP_LOOKS * watchdog.NUM_QUESTIONS


def test_one_that_answers_http_again_is_not_silent(tmp_path: Path) -> None:
    """It is silent in every other look, and hangs for good after the tenth."""
    num_before = 10 * watchdog.NUM_QUESTIONS * 2
    answers = [None] * watchdog.NUM_QUESTIONS * 2 + [OK] * 2
    once_in_a_while = FakeTriton(*answers * 5, None)
    assert with_fake(once_in_a_while, tmp_path, watchdog.first_silence) is not None
    assert len(once_in_a_while.canaries) > num_before


@pytest.mark.parametrize("num_others", [0, 3])
def test_a_front_door_that_answers_in_none_of_some_looks_is_silent(num_others: int, tmp_path: Path) -> None:
    """It answers the second question of every other look before."""
    front = FakeTriton(*([None, OK] * num_others), None)

    async def look(launch: Launch) -> None:
        at = replace(launch.endpoints, openai_port=launch.endpoints.http_port)
        await watchdog.until_front_silent(replace(launch, endpoints=at))

    with_fake(front, tmp_path, look)
    num_questions = 2 * num_others + watchdog.NUM_HTTP_LOOKS * watchdog.NUM_QUESTIONS
    assert front.canaries == [b"GET /v1/models HTTP/1.1\r\n"] * num_questions


def test_a_server_that_is_gone_is_not_silent(tmp_path: Path) -> None:
    assert asyncio.run(watchdog._silence(make_launch(tmp_path), "bros", 0)) is None


def test_every_model_of_ours_is_asked(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(REPOSITORY_ROOT / "model_repository")
    at = Endpoints("127.0.0.1", 1, 1, 1)
    assert set(watchdog.watched_models(Launch(tmp_path, tmp_path, TritonInstall(tmp_path), at, 1.0, 1.0))) == set(
        MODELS
    )
