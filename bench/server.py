"""Start and stop `bros-serve` for a measurement; the server ends with the benchmark, whatever happens."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a started server listens, and how long it took to be ready."""

    grpc_url: str
    http_url: str
    metrics_url: str
    ready_s: float


class ServerError(Exception):
    """The server did not come up."""


@contextlib.contextmanager
def running_server(arguments: Sequence[str]) -> Iterator[ServerAddress]:
    """Run `bros-serve` on free loopback ports with further `arguments` until the block ends. Raises ServerError."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "backend.serve", "--json", "--die-with-parent", *ports, *arguments]
    process = subprocess.Popen([*command, "--drain-timeout-s", "1"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ServerError(f"bros-serve ended with status {process.wait()} before it was ready")
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
