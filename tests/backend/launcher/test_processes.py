"""Who listens on a port is told from who could answer there."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from backend.launcher.processes import has_clients, listens


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    host = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    try:
        listener = socket.create_server((host, 0), family=request.param)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        yield listener.getsockname()[1]


def test_a_process_listens_on_a_port_of_its_own(port: int) -> None:
    assert listens(os.getpid(), [port])


def test_an_ancestor_counts(port: int) -> None:
    assert listens(os.getppid(), [port])


def test_a_stranger_does_not_count(port: int) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        assert not listens(stranger.pid, [port])


def test_every_port_counts(port: int) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not listens(os.getpid(), [port, bound.getsockname()[1]])


def test_a_process_that_has_ended_listens_nowhere(port: int) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert not listens(ended.pid, [port])


def test_a_client_counts_while_it_is_connected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not has_clients(os.getpid(), [port])
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0] as accepted:
            assert has_clients(os.getpid(), [port])
            assert not has_clients(os.getpid(), [port + 1])
            accepted.shutdown(socket.SHUT_RDWR)
            assert not has_clients(os.getpid(), [port])
