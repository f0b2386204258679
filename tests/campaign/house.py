"""A real `bros-serve` with the simulated executor: its processes, what they hold, and whether it serves."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from backend.executors.sim import SimSettings
from backend.launcher.child import stubs_of
from backend.launcher.reaper import marked_processes, shared_memory_prefix
from tests.campaign.messages import generate_bytes
from tests.campaign.request_paths import parse_answer
from tests.campaign.tokens import NameSearch

SIM = SimSettings(
    coefficients=(2e-3, 10e-6, 0.0, 0.0, 0.0), num_blocks=2048, max_seq_len=4096, vocab_size=1_000_000_007, verify=True
)
ROLES = ("launcher", "engine", "triton", "stub")
_STOP_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 60.0
_ASK_TIMEOUT_S = 10.0


class HouseError(Exception):
    """The server did not start, or did not stop."""


class House:
    """One server after another, with the same options. Times in seconds."""

    def __init__(
        self, options: Sequence[str] = (), prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        chosen = [f"sim.{name}={json.dumps(getattr(SIM, name))}" for name in _DIFFERENT]
        self.options = [*(word for each in (*chosen, *_SERVICE) for word in ("--set", each)), *options]
        self.prefix = list(prefix)
        self.environment = {**os.environ, **(environment or {})}
        self._words = tempfile.NamedTemporaryFile("w+", prefix="campaign-", suffix=".log")  # noqa: SIM115  # until `close`
        self._process: subprocess.Popen[str] | None = None
        self.names = NameSearch(SIM)
        self.run_directory = Path()
        self.http_port = self.metrics_port = 0
        self.num_canaries = 0  # requests that canaries sent
        self.grpc_url = ""

    def start(self) -> float:
        """Start a server on free ports; return how long it took. Raises HouseError."""
        started_s = time.monotonic()
        ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
        ports += ["--openai-port", "off"]
        command = [
            sys.executable,
            "-m",
            "backend.launcher.serve",
            "--json",
            "--die-with-parent",
            "--executor",
            "sim",
            *ports,
        ]
        command += ["--drain-timeout-s", "2", *self.options]
        self._process = subprocess.Popen(
            [*self.prefix, *command], stdout=subprocess.PIPE, stderr=self._words, text=True, env=self.environment
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HouseError(f"bros-serve ended with {self._process.wait()}: {self.words()[-600:]}")
        at = json.loads(line)
        self.http_port, self.grpc_url = int(urlsplit(at["http_url"]).port or 0), at["grpc_url"]
        self.metrics_port = int(urlsplit(at["metrics_url"]).port or 0)
        self.run_directory = _run_directory_of(self.processes("engine")[0])
        return time.monotonic() - started_s

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server as its user would; end it where it does not. Raises HouseError when that was needed."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill_launcher()
            raise HouseError(f"bros-serve did not stop in {_STOP_TIMEOUT_S:g} s") from None
        finally:
            self._forget()

    def kill_launcher(self) -> None:
        """Kill the launcher; its reaper ends the processes that it started."""
        assert self._process is not None, "no server runs"
        self._process.kill()
        self._process.wait()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._process.returncode is not None and self._process.stdout is not None:
            self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        """Stop the server, if one runs, and forget what it wrote."""
        with suppress(HouseError, ProcessLookupError):
            self.stop()
        self._words.close()

    def words(self) -> str:
        """Return what the launchers wrote so far."""
        return Path(self._words.name).read_text(errors="replace")

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the processes of `ROLES`, or reapers, that run now; stubs in the order of their models' names."""
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            launcher = next(p for p in _family(self._process.pid) if "backend.launcher.serve" in _command_of(p))
            if role == "launcher":
                return [launcher]
            below = launcher.children(recursive=True)
            if role == "reaper":
                return [p for p in below if any(word.endswith("reaper.py") for word in _command_of(p))]
            if role == "engine":
                return [p for p in below if "backend.server.engine_process" in _command_of(p)]
            servers = [p for p in below if _command_of(p)[:1] and _command_of(p)[0].endswith("tritonserver")]
            if role == "triton":
                return servers
            stubs = sorted((model, pid) for server in servers for pid, model in stubs_of(server.pid).items())
            return [psutil.Process(pid) for _, pid in stubs]
        return []

    def gauges(self) -> dict[str, dict[str, float]]:
        """Return memory (MiB), descriptors, threads and dead sockets of each kind of process.

        A dead socket has no connection any more, and its process has not closed it. It is not among the descriptors.
        """
        return {role: _gauge(self.processes(role)) for role in ROLES}

    def num_counted(self) -> int:
        """Return how many requests the server has counted as ended, in whatever way."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=_ASK_TIMEOUT_S) as answer:
            lines = answer.read().decode().splitlines()
        return round(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("bros_requests_total{")))

    async def inspect(self) -> dict[str, Any] | None:
        """Return the engine's snapshot; None where nobody answers in time."""
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port)
                writer.write(generate_bytes("bros", {"inspect": "engine"}, "generate"))
                answer = await reader.read()
                writer.close()
            return dict(json.loads(json.loads(parse_answer(answer)[1])["text_output"]))
        except (OSError, TimeoutError, http.client.HTTPException, ValueError, KeyError):
            return None

    async def num_be_waiting(self) -> int:
        """Return how many best-effort requests wait for their turn; 0 where nobody answers."""
        state = await self.inspect()
        return 0 if state is None else int(state["requests_by_class"]["be"]["num_waiting"])

    async def is_idle(self) -> bool:
        """Return whether no request and no slot is held."""
        return await self.what_is_held() == ""

    async def what_is_held(self) -> str:
        """Return in words what requests and slots the engine holds; empty where it holds none."""
        state = await self.inspect()
        if state is None:
            return "no snapshot"
        counts = {name: count for each in state["requests_by_class"].values() for name, count in each.items() if count}
        fills = base64.b64decode(state["kv"]["head_fill"]) + base64.b64decode(state["kv"]["tail_fill"])
        held = {**counts, "KV slots": sum(fills), "host slots": state["kv"]["num_host_slots_used"]}
        return ", ".join(f"{count} {name}" for name, count in held.items() if count)


_DIFFERENT = [name for name in SimSettings.__slots__ if getattr(SIM, name) != getattr(SimSettings(), name)]
_SERVICE = ("service.metrics_flush_s=0.1", "service.drain_timeout_s=2.0")


def left_behind(run_directory: Path) -> list[str]:
    """Return processes, shared memory and directory of a launch; nothing where it was swept."""
    processes = [f"process {pid}" for pid in marked_processes(run_directory)]
    files = [str(path) for path in Path("/dev/shm").glob(f"{shared_memory_prefix(run_directory)}*")]
    return processes + files + [str(path) for path in [run_directory] if path.exists()]


def _gauge(processes: Sequence[psutil.Process]) -> dict[str, float]:
    total = {"memory_mib": 0.0, "descriptors": 0.0, "threads": 0.0, "dead_sockets": 0.0}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            num_dead = _num_dead_sockets(process.pid)
            total["memory_mib"] += round(process.memory_info().rss / 2**20, 1)
            total["descriptors"] += process.num_fds() - num_dead
            total["threads"] += process.num_threads()
            total["dead_sockets"] += num_dead
    return {**total, "processes": len(processes)}


def _num_dead_sockets(pid: int) -> int:
    """Return how many sockets a process holds that are in none of the kernel's tables (proc(5), /proc/pid/net)."""
    held = {link for path in Path(f"/proc/{pid}/fd").iterdir() if (link := _link(path)).startswith("socket:")}
    alive = {f"socket:[{inode}]" for table in _SOCKET_TABLES for inode in _inodes(Path(f"/proc/{pid}/net/{table}"))}
    return len(held - alive)


_SOCKET_TABLES = {"tcp": 9, "tcp6": 9, "udp": 9, "udp6": 9, "unix": 6, "netlink": 9}  # and the inode's column


def _inodes(table: Path) -> list[str]:
    column = _SOCKET_TABLES[table.name]
    return [line.split()[column] for line in table.read_text().splitlines()[1:]] if table.exists() else []


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # closed since
        return ""


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and those below it; a prefix like `unshare` may stand in front of the launcher."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _command_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _run_directory_of(process: psutil.Process) -> Path:
    return Path(process.environ()["BROS_RUN_DIRECTORY"])
