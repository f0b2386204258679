"""A server that gives no sign of life is told from one that is late, and from one that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from backend.launcher import watchdog
from backend.launcher.endpoints import Endpoints
from backend.launcher.launch import Launch
from backend.launcher.triton_install import TritonInstall

CONFIG = 'parameters {{ key: "max_inflight" value {{ string_value: "{}" }} }}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


def make_launch(tmp_path: Path, http_port: int, metrics_port: int) -> Launch:
    for model, bound in (("bros", 0), ("bros_be", 128)):
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "config.pbtxt").write_text(CONFIG.format(bound))
    at = Endpoints("127.0.0.1", http_port, 1, metrics_port)
    return Launch(tmp_path, tmp_path, TritonInstall(tmp_path), at, 1.0, 1.0, canary_timeout_s=0.05)


class FakeTriton:
    """Answers each canary with `answer`, None not at all; has executed `step` requests more at each look."""

    def __init__(self, answer: bytes | None, step: int) -> None:
        self.answer = answer
        self.step = step
        self.num_executed = 0
        self.canaries: list[bytes] = []

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.canaries.append(await reader.readline())
        if self.answer is None:
            await reader.read()
        else:
            writer.write(self.answer)
        writer.close()

    async def metrics(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        self.num_executed += self.step
        writer.write(f'{OK.decode()}nv_inference_exec_count{{model="bros",version="1"}} {self.num_executed}\n'.encode())
        writer.close()


def with_fake(fake: FakeTriton, tmp_path: Path, look: Callable[[Launch], Awaitable[object]]) -> object:
    async def run() -> object:
        async with (
            await asyncio.start_server(fake.http, "127.0.0.1", 0) as http,
            await asyncio.start_server(fake.metrics, "127.0.0.1", 0) as metrics,
        ):
            ports = [server.sockets[0].getsockname()[1] for server in (http, metrics)]
            return await look(make_launch(tmp_path, *ports))

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "step", "is_silent"),
    [(OK, 0, False), (REFUSED, 0, False), (None, 1, False), (None, 0, True)],
    ids=["answers", "refuses", "late but executing", "hangs"],
)
def test_silent_is_what_neither_answers_nor_executes(
    answer: bytes | None, step: int, is_silent: bool, tmp_path: Path
) -> None:
    fake = FakeTriton(answer, step)
    assert with_fake(fake, tmp_path, lambda launch: watchdog._is_silent(launch, "bros")) is is_silent
    assert fake.canaries == [b"POST /v2/models/bros/generate HTTP/1.1\r\n"]


def test_a_silent_model_is_named(tmp_path: Path) -> None:
    assert with_fake(FakeTriton(None, 0), tmp_path, watchdog.silent_model) == "bros"


def test_a_server_that_is_gone_is_not_silent(tmp_path: Path) -> None:
    assert asyncio.run(watchdog._is_silent(make_launch(tmp_path, 1, 1), "bros")) is False


def test_a_model_that_holds_requests_back_is_not_asked(tmp_path: Path) -> None:
    assert watchdog.watched_models(make_launch(tmp_path, 1, 1)) == ["bros"]


def test_only_an_answer_of_the_stub_is_an_answer(tmp_path: Path) -> None:
    def look(launch: Launch) -> Awaitable[bool]:
        return watchdog.answers(launch.endpoints, "bros", 1.0)

    assert with_fake(FakeTriton(OK, 0), tmp_path / "ok", look) is True
    assert with_fake(FakeTriton(REFUSED, 0), tmp_path / "refused", look) is False
