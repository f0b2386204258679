"""A port that a stranger takes after it was chosen: the launch says so, whatever the stranger answers."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.backend.launcher.test_serve import READY, TIMEOUT_S, base, serve

__all__ = ["base"]  # a fixture


class Agreeable(BaseHTTPRequestHandler):
    """Answers every question as a healthy server does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def stranger(port: int) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", port), Agreeable) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def fake_triton(base: Path) -> tuple[Path, Path]:
    """Return a server that ends with code 1 once its gate, a named pipe, is opened and closed; and that gate."""
    os.mkfifo(gate := base / "gate")
    binary = base / "tritonserver"
    binary.write_text(f"#!{sys.executable}\nopen({str(gate)!r}).read()\nraise SystemExit(1)\n")
    binary.chmod(0o700)
    return binary, gate


def test_a_port_that_a_stranger_takes_meanwhile_is_one_clear_line(base: Path) -> None:
    binary, gate = fake_triton(base)
    port = free_port()
    options = ("--tritonserver", str(binary), "--http-port", str(port), "--openai-port", "off")
    # The gate opens when the fake reads.
    with serve(base, *options) as launch, gate.open("w") as opened, stranger(port):
        assert "engine" in launch.wait_for("ready"), "a stranger's answers made it ready"
        opened.close()
        _, words = launch.process.communicate(timeout=TIMEOUT_S)
    assert launch.process.returncode == 2
    assert words.splitlines()[-1] == (
        f"bros-serve: http port {port} on 127.0.0.1: Address already in use; choose another with --http-port"
    )
    assert READY not in words
