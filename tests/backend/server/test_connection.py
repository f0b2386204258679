"""The engine's side of one stub's socket: it never waits, and it gives up on a stub that does not read."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.server.connection import Connection
from backend.server.orphans import _watch
from backend.wire.protocol import Chunk, Chunks, stub_reader
from tests.backend.serving import WAIT_S

MESSAGES = [Chunks((Chunk(index, "x" * 1000),)) for index in range(300)]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    engine, stub = socket.socketpair()
    engine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with engine, stub:
        yield engine, stub


def test_what_the_socket_does_not_take_at_once_arrives_later_and_in_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    connection = Connection(pair[0], 1, max_unsent_bytes=10_000_000)
    for message in MESSAGES:
        connection.send(message)
    with stub_reader(pair[1]) as reader:
        assert [reader.read() for _ in MESSAGES] == MESSAGES
    assert connection.flush(WAIT_S)
    connection.close()


@pytest.mark.parametrize(("name", "value"), [("_PATIENCE_S", 0.0), ("_BURST", 1)])
def test_a_stub_that_does_not_read_is_disconnected_beyond_the_limit(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    monkeypatch.setattr(f"backend.server.connection.{name}", value)
    connection = Connection(pair[0], 1, max_unsent_bytes=50_000)
    for message in MESSAGES:
        connection.send(message)
    with stub_reader(pair[1]) as reader:
        arrived = list(reader)
    assert arrived == MESSAGES[: len(arrived)]
    assert len(arrived) < len(MESSAGES)
    assert connection.flush(0.0)


def test_a_stub_that_reads_gets_more_than_the_limit_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    connection = Connection(pair[0], 1, max_unsent_bytes=50_000)
    for message in MESSAGES:
        connection.send(message)
    with stub_reader(pair[1]) as reader:
        assert [reader.read() for _ in MESSAGES] == MESSAGES
    connection.close()


def test_sending_to_a_stub_that_is_gone_does_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    connection = Connection(pair[0], 1, max_unsent_bytes=50_000)
    pair[1].close()
    for message in MESSAGES:
        connection.send(message)
    assert connection.flush(5.0)
    connection.close()
    connection.close()


def test_request_ids_carry_the_clients_name_and_are_unique(pair: tuple[socket.socket, socket.socket]) -> None:
    one, two = Connection(pair[0], 1, 1), Connection(pair[1], 2, 1)
    ids = {connection.request_id(handle, "a7") for connection in (one, two) for handle in (1, 2)}
    assert len(ids) == 4
    assert all(name.startswith("a7#") for name in ids)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_stub_that_outlives_its_server_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.server.orphans._GRACE_S", 0.0)
    with sleeper() as stub, sleeper() as server:
        server.kill()
        _watch(stub.pid, server.pid)
        assert stub.wait(WAIT_S) == -9


def test_a_stub_that_ends_before_its_server_is_left_alone() -> None:
    with sleeper() as stub, sleeper() as server:
        stub.kill()
        _watch(stub.pid, server.pid)
        assert server.poll() is None
        server.kill()


def test_a_stub_is_watched_by_descriptors_of_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """`select` takes none above 1,023: the thread that watched failed, and the engine's process ended by it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2_048), limits[1]))
    monkeypatch.setattr("os.pidfd_open", lambda pid, opened=os.pidfd_open: with_large_number(opened(pid)))
    try:
        test_a_stub_that_outlives_its_server_is_ended(monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def with_large_number(descriptor: int) -> int:
    """Return the same under a number above 1,500."""
    large = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 1_500)
    os.close(descriptor)
    return large


def test_a_stub_that_cannot_be_ended_fails_no_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have ended a moment ago, or be another user's. A thread that fails ends the engine's process."""

    def too_late(*_: object) -> None:
        raise ProcessLookupError("no such process")

    monkeypatch.setattr("backend.server.orphans._GRACE_S", 0.0)
    with sleeper() as stub, sleeper() as server:
        server.kill()
        with monkeypatch.context() as patched:
            patched.setattr("signal.pidfd_send_signal", too_late)
            _watch(stub.pid, server.pid)
        stub.kill()
    assert f"stub {stub.pid} was not ended: no such process" in caplog.text


def test_shared_memory_that_cannot_be_removed_keeps_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    regions = [tmp_path / name for name in ("kept", "first", "second")]
    regions[0].mkdir()  # which `unlink` refuses, as it does another user's file in a sticky folder
    for region in regions[1:]:
        region.touch()
    monkeypatch.setattr("backend.server.orphans._shared_memory_of", lambda _: set(regions))
    test_a_stub_that_outlives_its_server_is_ended(monkeypatch)
    assert [region.exists() for region in regions] == [True, False, False]
