"""The engine's socket: one process has it, and it comes back when somebody deletes its file."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backend.server.listener import AlreadyServedError, Listener
from tests.backend.serving import WAIT_S, ask, linked, make_file, running

DIRECTORY = "own"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("backend.server.listener.CHECK_PERIOD_S", 0.005)
    return tmp_path / DIRECTORY / "s"


@pytest.fixture
def greeted(path: Path) -> Iterator[threading.Semaphore]:
    """Accept at `path` in a thread; the semaphore counts who came."""
    came = threading.Semaphore(0)
    listener = Listener(path)

    def accept() -> None:
        while (connection := listener.accept()) is not None:
            connection.close()
            came.release()

    thread = threading.Thread(target=accept)
    thread.start()
    yield came
    listener.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not path.exists()


def reach(path: Path) -> None:
    """Connect as a stub does: again and again until somebody listens."""
    tries = threading.Event()
    for _ in range(int(WAIT_S / 0.005)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stub:
            try:
                stub.connect(str(path))
            except OSError:
                tries.wait(0.005)
            else:
                return
    raise AssertionError(f"nobody listens at {path}")


def test_a_socket_whose_file_was_deleted_is_put_back(path: Path, greeted: threading.Semaphore) -> None:
    for _ in range(2):
        path.unlink()
        reach(path)
        assert greeted.acquire(timeout=WAIT_S)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_whole_directory_that_was_deleted_is_put_back_with_its_lock(path: Path, greeted: threading.Semaphore) -> None:
    shutil.rmtree(path.parent)
    reach(path)
    assert greeted.acquire(timeout=WAIT_S)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(AlreadyServedError):
        Listener(path)


def test_what_lies_in_the_place_of_the_socket_is_replaced(path: Path, greeted: threading.Semaphore) -> None:
    path.unlink()
    path.write_text("no socket")
    reach(path)
    assert greeted.acquire(timeout=WAIT_S)


def test_a_socket_that_another_engine_took_is_left_to_it(path: Path) -> None:
    with closing(Listener(path)) as robbed:
        shutil.rmtree(path.parent)
        with closing(Listener(path)) as other:
            inode = path.stat().st_ino
            robbed._put_back()
            assert path.stat().st_ino == inode
            reach(path)
            connection = other.accept()
            assert connection is not None
            connection.close()
        robbed._put_back()
        assert path.exists()
    assert not path.exists()


def test_a_second_listener_is_refused_and_a_later_one_is_not(path: Path) -> None:
    with closing(Listener(path)), pytest.raises(AlreadyServedError):
        Listener(path)
    with closing(Listener(path)):
        assert path.is_socket()


def test_a_stub_that_starts_after_the_file_was_deleted_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.server.listener.CHECK_PERIOD_S", 0.005)
    file = make_file(tmp_path)
    with running(file), linked(file) as early:
        file.socket_path.unlink()
        with linked(file, "bros_rt") as late:
            assert ask(late).end().finish_reason == "length"
        assert ask(early).end().finish_reason == "length"
