"""The engine's side of one stub's socket: it never waits, and it gives up on a stub that does not read."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

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
