"""One server with the simulated executor, shared by the tests of this folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def urls() -> Iterator[dict[str, str]]:
    """`http_url`, `grpc_url` and `metrics_url` of a running `bros-serve`."""
    ports = [option for name in ("http", "grpc", "metrics") for option in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "backend.serve", "--executor", "sim", "--json", *ports]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()
