"""`serve_many` for tests: started on a free port, and stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from backend.config import REPOSITORY_ROOT
from backend.dynamo.many_options import ENVIRONMENT
from bench.live.server import free_port
from tests.triton.servers import wait_until

START_TIMEOUT_S = 120.0
needs_dynamo = [
    pytest.mark.slow,
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="NVIDIA Dynamo is not installed: make serve-many"),
]


@dataclass
class Many:
    """A running `serve_many`. `said`: the lines that it wrote to stderr since."""

    url: str
    process: psutil.Process
    directory: Path
    said: list[str] = field(default_factory=list)

    @property
    def worker_pids(self) -> list[int]:
        """The workers that run now, in order."""
        commands = {child.pid: " ".join(child.cmdline()) for child in self.process.children()}
        found = {pid: re.search(r"backend\.dynamo\.worker .*/(\d+)\.json", words) for pid, words in commands.items()}
        return sorted((pid for pid, match in found.items() if match), key=lambda pid: int(found[pid][1]))  # type: ignore[index]

    @property
    def frontend_pid(self) -> int:
        """The frontend that runs now."""
        found = [child.pid for child in self.process.children() if "dynamo.frontend" in child.cmdline()]
        assert len(found) == 1
        return found[0]

    def instances(self) -> set[int]:
        """Return the workers that the frontend knows."""
        listed = httpx.get(f"{self.url}/health", timeout=10.0).json()["instances"]
        return {each["instance_id"] for each in listed if each["endpoint"] == "generate"}

    def wait_for_instances(self, count: int, timeout_s: float = START_TIMEOUT_S) -> None:
        wait_until(lambda: len(self.instances()) == count, f"{count} workers", timeout_s)


@contextmanager
def serving(*options: str) -> Iterator[Many]:
    port = free_port()
    command = [sys.executable, "-m", "backend.dynamo.serve_many", "--port", str(port), *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    listener = threading.Thread(target=lines.extend, args=(process.stderr,))
    listener.start()
    try:
        hint = ""
        while "Ctrl-C" not in hint:
            line = process.stdout.readline()
            assert line, f"serve-many ended: {hint}{lines}"
            hint += line
        logs = re.search(r"Logs: (\S+)\.", hint)
        assert logs is not None, hint
        yield Many(f"http://127.0.0.1:{port}", psutil.Process(process.pid), Path(logs[1]), lines)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(START_TIMEOUT_S)
        listener.join()
        process.stdout.close()
        process.stderr.close()
