"""`bros chat` in a terminal of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.triton.servers import PATIENCE_S, Server, wait_until

CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """`bros chat` against the fake, seen and typed at through a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self._fd, child = pty.openpty()
        command = [sys.executable, "-m", "client.cli", "chat", *arguments]
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, start_new_session=True, preexec_fn=_own_terminal
        )
        os.close(child)
        self._seen = ""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def press_until(self, key: bytes, pattern: str) -> None:
        """Press `key` until it shows: readline misses a signal that comes just before it waits for a key."""
        for _ in range(int(PATIENCE_S)):
            self.type(key)
            with contextlib.suppress(AssertionError):
                self.wait_for(pattern, patience_s=1.0)
                return
        raise AssertionError(f"{key!r} had no effect")

    def wait_for(self, pattern: str, patience_s: float = PATIENCE_S) -> str:
        """Return the text printed since the last call, up to the first match."""
        deadline_s = time.monotonic() + patience_s
        while not (match := re.search(pattern, self._seen)):
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"{pattern!r} did not come; seen: {self._seen!r}"
            self._seen += os.read(self._fd, 4096).decode()
        before, self._seen = self._seen[: match.end()], self._seen[match.end() :]
        return before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._fd)


def _own_terminal() -> None:
    """Make the child's stdin its controlling terminal, so that Ctrl-C becomes SIGINT."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def slow() -> Iterator[Terminal]:
    terminal = Terminal("--url", "fake://?token_s=0.02", "--max-tokens", "2000")
    yield terminal
    terminal.close()


def test_an_answer_streams_and_the_talk_goes_on() -> None:
    terminal = Terminal("--url", "fake://", "--max-tokens", "3")
    try:
        terminal.wait_for("> ")
        terminal.type(b"hello there\n")
        assert "hello there hello" in terminal.wait_for(r"\[length.*\]")
        terminal.type(b"once more\n")
        assert "once more once" in terminal.wait_for(r"\[length.*\]")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.process.wait(PATIENCE_S) == 0
    finally:
        terminal.close()


def test_ctrl_c_ends_the_answer_only(slow: Terminal) -> None:
    slow.wait_for("> ")
    slow.type(b"alpha\n")
    slow.wait_for("alpha alpha alpha")
    slow.type(CTRL_C)
    slow.wait_for(r"\[cancelled\]")
    slow.wait_for("> ")
    slow.type(b"beta\n")
    slow.wait_for("beta beta beta")
    assert slow.process.poll() is None


@pytest.mark.triton
def test_ctrl_c_frees_the_server(sim: Server) -> None:
    terminal = Terminal("--url", sim.grpc_url, "--max-tokens", "4000")
    try:
        terminal.wait_for("> ")
        terminal.type(b"Tell me a very long story.\n")
        wait_until(lambda: sim.num_requests() == 1, "the request's arrival")
        terminal.wait_for(r"\w+ \w+")
        terminal.type(CTRL_C)
        wait_until(lambda: sim.num_requests() == 0, "the request's end")
        terminal.wait_for(r"\[cancelled\]")
    finally:
        terminal.close()


def test_ctrl_c_at_the_prompt_drops_the_line(slow: Terminal) -> None:
    slow.wait_for("> ")
    slow.type(b"half a tho")
    slow.wait_for("half a tho")
    slow.press_until(CTRL_C, "> ")
    slow.type(b"gamma\n")
    assert "half" not in slow.wait_for("gamma gamma gamma")
