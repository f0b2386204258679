"""A stub's link: it finds or starts the engine, and no stream outlives the engine that served it."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backend.config import ConfigFile
from backend.core.errors import EngineUnavailableError
from backend.link.engine_link import EngineLink
from backend.wire.protocol import (
    Cancel,
    Chunk,
    Chunks,
    EngineState,
    Hello,
    Metrics,
    Stage,
    Submit,
    ToStub,
    engine_reader,
    frame,
    peer_of,
)
from tests.backend.serving import WAIT_S, Answer, ask, linked, make_file, make_generation, running


class FakeEngine:
    """The engine's end of the socket, by hand: sends the messages of a test and keeps those it receives."""

    def __init__(self, file: ConfigFile) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        file.socket_path.unlink(missing_ok=True)
        self._listener.bind(str(file.socket_path))
        self._listener.listen()
        self._connection: socket.socket | None = None

    def accept(self) -> Hello:
        """Take the next connection and return its greeting."""
        self._connection, _ = self._listener.accept()
        self._reader = engine_reader(self._connection)
        hello = self._reader.read()
        assert isinstance(hello, Hello)
        return hello

    def say(self, *messages: ToStub) -> None:
        assert self._connection is not None
        self._connection.sendall(b"".join(map(frame, messages)))

    def hear(self) -> object:
        return self._reader.read()

    def hang_up(self) -> None:
        """Close the connection, as the system does for a process that was killed."""
        if self._connection is not None:
            with self._reader:
                self._connection.close()
            self._connection = None

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


@contextmanager
def fake_engine(file: ConfigFile) -> Iterator[FakeEngine]:
    engine = FakeEngine(file)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    return make_file(tmp_path)


READY = EngineState(Stage.READY)


def test_without_an_engine_a_request_is_refused_with_retry_advice(file: ConfigFile) -> None:
    link = EngineLink(file, "bros")
    with pytest.raises(EngineUnavailableError, match=r"no engine to talk to; retry_after_ms=1000"):
        ask(link)
    link.close()


def test_each_state_of_loading_is_reported_and_a_request_meanwhile_is_refused(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros_rt", server_pid=7)
        assert engine.accept() == Hello(1, "bros_rt", False, 7)
        states: list[EngineState] = []
        half = EngineState(Stage.LOADING, "loading layers", 0.5)

        def on_change(state: EngineState) -> None:
            states.append(state)
            if state == half:
                with pytest.raises(EngineUnavailableError, match="the engine is loading 50%: loading layers"):
                    ask(link)
                engine.say(READY)

        engine.say(half)
        link.wait_until_ready(on_change)
        assert states == [half, READY]
        link.close()


def test_waiting_for_an_engine_that_fails_raises_its_reason(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros")
        engine.accept()
        engine.say(EngineState(Stage.FAILED, "no memory"))
        with pytest.raises(EngineUnavailableError, match="the engine failed: no memory"):
            link.wait_until_ready(lambda _: None)
        link.close()


def test_when_the_engine_goes_every_open_stream_ends_once_with_an_error(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros")
        engine.accept()
        engine.say(READY)
        link.wait_until_ready(lambda _: None)
        answers = [ask(link) for _ in range(5)]
        assert all(isinstance(engine.hear(), Submit) for _ in answers)
        engine.hang_up()
        for answer in answers:
            end = answer.end()
            assert (end.error_code, end.error_status) == ("ENGINE_DOWN", "UNAVAILABLE")
            assert "retry_after_ms=" in end.error_message
        engine.accept()  # it comes again by itself
        engine.say(READY)
        link.wait_until_ready(lambda _: None)
        ask(link)
        assert isinstance(engine.hear(), Submit)
        link.close()


def test_another_users_engine_gets_no_requests(file: ConfigFile, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = threading.Semaphore(0)

    def stranger(_: socket.socket) -> tuple[int, int]:
        tries.release()
        return 1, os.getuid() + 1

    monkeypatch.setattr("backend.link.engine_link.peer_of", stranger)
    with running(file):
        link = EngineLink(file, "bros")
        assert tries.acquire(timeout=WAIT_S)
        assert tries.acquire(timeout=WAIT_S)  # it tries again, since it did not take the first
        with pytest.raises(EngineUnavailableError, match="no engine to talk to"):
            ask(link)
        link.close()


def test_garbage_from_the_engine_is_as_good_as_its_death(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros")
        engine.accept()
        engine.say(READY)
        link.wait_until_ready(lambda _: None)
        answer = ask(link)
        assert engine._connection is not None
        engine._connection.sendall(b"\x00\x00\x00\x02hi")
        assert answer.end().error_code == "ENGINE_DOWN"
        link.close()


def test_closing_the_link_ends_what_is_open(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros")
        engine.accept()
        engine.say(READY)
        link.wait_until_ready(lambda _: None)
        answer = ask(link)
        link.close()
        assert answer.end().error_code == "ENGINE_DOWN"


def test_a_sink_that_raises_ends_its_own_request_and_no_other(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros")
        engine.accept()
        engine.say(READY)
        link.wait_until_ready(lambda _: None)
        lost: list[Chunk] = []

        def no_room(chunk: Chunk) -> None:
            lost.append(chunk)
            raise MemoryError("no shared memory")

        link.submit("mine", make_generation(), no_room)
        good = ask(link)
        assert isinstance(engine.hear(), Submit)
        assert isinstance(engine.hear(), Submit)
        engine.say(Chunks((Chunk(1, "a"), Chunk(2, "b"))), Chunks((Chunk(1, "c"), Chunk(2, "d"))))
        assert engine.hear() == Cancel(1, "mine")
        assert [good.first().text, good.first().text] == ["b", "d"]
        (first, last) = lost
        assert (first.text, first.end) == ("a", None)
        assert last.end is not None
        assert last.end.error_code == "INTERNAL"
        link.close()


def test_a_request_that_makes_no_message_is_its_senders_error_and_is_forgotten(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros")
        engine.accept()
        engine.say(READY)
        link.wait_until_ready(lambda _: None)
        with pytest.raises(UnicodeEncodeError):
            ask(link, text="\ud83d")
        assert not link._sinks
        ask(link)
        assert isinstance(engine.hear(), Submit)
        link.close()


def test_metrics_that_nobody_asked_for_are_ignored(file: ConfigFile) -> None:
    with fake_engine(file) as engine:
        link = EngineLink(file, "bros")
        engine.accept()
        engine.say(Metrics(()), READY)
        link.wait_until_ready(lambda _: None)
        link.close()


def test_many_threads_share_one_link(file: ConfigFile) -> None:
    with running(file), linked(file) as link:
        answers: list[Answer] = []
        threads = [
            threading.Thread(target=lambda: answers.extend(ask(link, max_tokens=3) for _ in range(20)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert len(answers) == 160
        assert {answer.end().finish_reason for answer in answers} == {"length"}
        assert all(len(answer.token_ids) == 3 for answer in answers)


def test_stubs_start_one_engine_between_them_and_another_when_it_dies(tmp_path: Path) -> None:
    file = make_file(tmp_path, start_engine=True, unused_exit_s=2.0)
    with linked(file, "bros") as one, linked(file, "bros_rt") as two:
        assert ask(one).end().finish_reason == "length"
        assert ask(two).end().finish_reason == "length"
        engine = engine_pid(one)
        answer = Answer()
        two.submit("", make_generation(max_tokens=8000), answer)
        answer.first()
        os.kill(engine, signal.SIGKILL)
        assert answer.end().error_code == "ENGINE_DOWN"
        two.wait_until_ready(lambda _: None)
        assert ask(two).end().finish_reason == "length"
        last = engine_pid(two)
        assert last != engine
        descriptor = os.pidfd_open(last)
    with os.fdopen(descriptor) as gone:  # readable when the process has ended
        assert select.select([gone], [], [], WAIT_S)[0]


def engine_pid(link: EngineLink) -> int:
    """Return the process at the other end of a link."""
    assert link._socket is not None
    return peer_of(link._socket)[0]


def test_an_engine_that_cannot_be_started_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    file = make_file(tmp_path, start_engine=True, python="/no/such/python")
    link = EngineLink(file, "bros")
    with pytest.raises(EngineUnavailableError):
        ask(link)
    link.close()
