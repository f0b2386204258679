"""An engine that gives no sign of life is told from one that loads, one that is gone, and one that refuses to say."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from backend.core.errors import EngineUnavailableError
from backend.launcher.engine_watch import until_silent
from backend.wire.protocol import Chunk, Chunks, End, EngineState, Hello, Snapshot, Stage, engine_reader, frame

READY, LOADING = EngineState(Stage.READY), EngineState(Stage.LOADING)
ANSWER = Chunks((Chunk(1, "{}", end=End(finish_reason="stop")),))
FULL = Chunks((Chunk(1, end=End(error_code="OVERLOADED", error_message="16 answers are waiting")),))
REFUSAL = Chunks((Chunk(1, end=End(error_code="INVALID_REQUEST", error_message="not here")),))


class FakeEngine:
    """Greets each that connects with the next of `replies`, and the last again and again."""

    def __init__(self, path: Path, replies: list[tuple[EngineState | Chunks, ...]]) -> None:
        self.asked: list[object] = []
        self._replies = replies
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._greet, args=(connection, self._next()), daemon=True).start()

    def _next(self) -> tuple[EngineState | Chunks, ...]:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def _greet(self, connection: socket.socket, reply: tuple[EngineState | Chunks, ...]) -> None:
        with connection, engine_reader(connection) as reader:
            self.asked += [reader.read(), reader.read()]
            for message in reply:
                connection.sendall(frame(message))
            with suppress(BrokenPipeError):  # the watch waited no longer for the answer
                while reader.read() is not None:  # asked again
                    connection.sendall(frame(reply[-1]))


def seconds_until_silent(path: Path, timeout_s: float, patience_s: float) -> float | None:
    """Return how long it took to find silence; None if that took longer than `patience_s`."""

    async def run() -> float | None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            async with asyncio.timeout(patience_s):
                await until_silent(path, timeout_s)
        except TimeoutError:
            return None
        return loop.time() - began_s

    return asyncio.run(run())


@pytest.mark.parametrize("reply", [(), (READY,), (READY, FULL)], ids=["not even a state", "no step ends", "many ask"])
def test_no_answer_is_silence(tmp_path: Path, reply: tuple[EngineState, ...]) -> None:
    engine = FakeEngine(tmp_path / "s", [(READY, ANSWER), reply])
    found_s = seconds_until_silent(tmp_path / "s", timeout_s=0.2, patience_s=20)
    assert found_s is not None
    assert found_s >= 0.4  # after a look that was answered, and a pause
    assert engine.asked[1] == Snapshot(1, names_requests=False)
    assert isinstance(engine.asked[0], Hello)


@pytest.mark.parametrize("reply", [(READY, ANSWER), (READY, REFUSAL), (LOADING,)], ids=["answers", "refuses", "loads"])
def test_any_answer_is_a_sign_of_life(tmp_path: Path, reply: tuple[EngineState | Chunks, ...]) -> None:
    engine = FakeEngine(tmp_path / "s", [reply])
    assert seconds_until_silent(tmp_path / "s", timeout_s=0.3, patience_s=1.5) is None
    assert len(engine.asked) >= 4


def test_an_engine_that_closes_at_once_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so where it can start no thread for a connection. Its watch had then ended without a word."""
    asked = []

    def broken(_: socket.socket, message: object) -> None:
        asked.append(message)
        raise EngineUnavailableError("the connection to the engine broke")

    monkeypatch.setattr("backend.launcher.engine_watch.send", broken)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        assert seconds_until_silent(tmp_path / "s", timeout_s=0.1, patience_s=1.0) is None
    assert len(asked) >= 3


def test_a_launcher_that_was_stopped_itself_reads_the_answer_first(tmp_path: Path) -> None:
    FakeEngine(tmp_path / "s", [(READY, ANSWER)])

    async def run() -> bool:
        watch = asyncio.create_task(until_silent(tmp_path / "s", timeout_s=0.4))
        await asyncio.sleep(0)
        time.sleep(1.0)  # as Ctrl-Z and `fg` would stop the whole process
        done, _ = await asyncio.wait({watch}, timeout=1.5)
        watch.cancel()
        return bool(done)

    assert not asyncio.run(run())


def test_an_engine_that_is_gone_is_not_silent(tmp_path: Path) -> None:
    assert seconds_until_silent(tmp_path / "s", timeout_s=0.1, patience_s=0.5) is None
