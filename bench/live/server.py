"""Start and stop `bros-serve` for a measurement; the server ends with the benchmark, whatever happens."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from bench.common.command import CommandError

_STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a started server listens, and how long it took to be ready."""

    grpc_url: str
    http_url: str
    metrics_url: str
    ready_s: float
    openai_url: str | None = None  # of the front door, where one was asked for; without /v1


class ServerError(CommandError):
    """The server did not come up."""


def free_port() -> int:
    """Return a loopback port that nobody listened on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_server(arguments: Sequence[str]) -> Iterator[ServerAddress]:
    """Run `bros-serve` on free loopback ports with further `arguments` until the block ends. Raises ServerError."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    ports += [] if "--openai-port" in arguments else ["--openai-port", "off"]
    command = [sys.executable, "-m", "backend.launcher.serve", "--json", "--die-with-parent", *ports, *arguments]
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            [*command, "--drain-timeout-s", "1"], stdout=subprocess.PIPE, stderr=words, text=True
        )
        yield from _served(process, words)


def _served(process: subprocess.Popen[str], words: IO[str]) -> Iterator[ServerAddress]:
    """Yield the address once the server is ready; stop it afterwards."""
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            status = process.wait()
            words.seek(0)
            raise ServerError(f"bros-serve ended with status {status} before it was ready:\n{words.read()}")
        values = json.loads(line)
        yield ServerAddress(**{name: values[name] for name in ServerAddress.__slots__})
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
