"""Real servers to test against: by `bros-serve`, and a plain `tritonserver` that nobody supervises."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.config import CONFIG_VARIABLE, REPOSITORY_ROOT
from backend.launcher.triton_install import find_triton

START_TIMEOUT_S = 120.0
# Processes of one machine find each other whatever proxy the environment names; nobody listens at this one.
DEAD_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
PATIENCE_S = 30.0  # for what takes milliseconds, on a machine that may stall: a limit for a hang, never the claim


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is: addresses, and the process id of who started it (launcher or server)."""

    grpc_url: str
    http_url: str
    metrics_url: str
    pid: int
    openai_url: str = ""  # of the front door, where one was asked for; ends in /v1

    def post(self, model: str, body: dict[str, Any], endpoint: str = "generate") -> tuple[int, str]:
        """Post to a generate endpoint; return the HTTP status and the whole body."""
        data = json.dumps(body).encode()
        url = f"{self.http_url}/v2/models/{model}/{endpoint}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=2 * PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def generate(self, model: str = "bros", **body: Any) -> dict[str, Any]:
        """Return the answer of the generate endpoint as JSON."""
        status, text = self.post(model, {"text_input": "hello", "max_tokens": 4, **body})
        assert status == 200, text
        return dict(json.loads(text))

    def inspect(self) -> dict[str, Any]:
        """Return the engine's snapshot."""
        status, text = self.post("bros", {"inspect": "engine"})
        assert status == 200, text
        return dict(json.loads(json.loads(text)["text_output"]))

    def num_requests(self) -> int:
        """Return how many requests the engine holds."""
        by_class = self.inspect()["requests_by_class"]
        return sum(counts[f"num_{state}"] for counts in by_class.values() for state in ("waiting", "running"))

    def metrics(self) -> str:
        """Return the text of the metrics endpoint."""
        with urllib.request.urlopen(self.metrics_url, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def metric(self, series: str) -> float:
        """Return the value of one series, written as on the metrics endpoint; 0 where it is not there."""
        lines = (line.rsplit(" ", 1) for line in self.metrics().splitlines())
        return next((float(line[1]) for line in lines if line[0] == series), 0.0)


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until `holds()`. Another process's state can only be asked for."""
    give_up_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)


@contextmanager
def serving(log: Path, *options: str) -> Iterator[Server]:
    """Serve by `bros-serve` with `options`, on free ports."""
    ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    ports += [] if "--openai-port" in options else ["--openai-port", "off"]
    command = [sys.executable, "-m", "backend.launcher.serve", "--json", "--die-with-parent", *ports, *options]
    environment = os.environ | DEAD_PROXY
    with (
        log.open("w") as words,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, env=environment) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the server did not start:\n{log.read_text()}"
        at = json.loads(line)
        try:
            openai_url = f"{at['openai_url']}/v1" if at["openai_url"] else ""
            yield Server(at["grpc_url"], at["http_url"], at["metrics_url"], process.pid, openai_url)
        finally:
            process.terminate()
            process.stdout.read()


@contextmanager
def plain_server(directory: Path, config: dict[str, Any], edit: Callable[[Path], None]) -> Iterator[Server]:
    """Run `tritonserver --model-repository` alone, on a copy of the repository that `edit` may change."""
    repository = directory / "models"
    shutil.copytree(REPOSITORY_ROOT / "model_repository", repository, ignore=shutil.ignore_patterns("__pycache__"))
    edit(repository)
    config_path = directory / "engine.json"
    service = {"socket_path": str(directory / "engine.sock"), "allow_inspect": True, **config.pop("service", {})}
    config_path.write_text(json.dumps({**config, "service": service}))
    triton = find_triton(None, directory)
    http_port, grpc_port, metrics_port = free_ports(3)
    arguments = [str(triton.binary), f"--model-repository={repository}", "--allow-gpu-metrics=false"]
    arguments += [f"--backend-directory={triton.backends}"] if triton.backends else []
    for name, port in (("http", http_port), ("grpc", grpc_port), ("metrics", metrics_port)):
        arguments += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
    environment = (
        os.environ | triton.environment | {CONFIG_VARIABLE: str(config_path), "PYTHONPATH": str(REPOSITORY_ROOT)}
    )
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = directory / "log"
    with log.open("w") as words:
        process = subprocess.Popen(arguments, env=environment, stdout=words, stderr=words, start_new_session=True)
    http_url = f"http://127.0.0.1:{http_port}"
    server = Server(f"127.0.0.1:{grpc_port}", http_url, f"http://127.0.0.1:{metrics_port}/metrics", process.pid)
    try:
        wait_until(lambda: is_ready(server) or process.poll() is not None, "the server's start", START_TIMEOUT_S)
        assert process.poll() is None, log.read_text()[-3000:]
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(START_TIMEOUT_S)


def is_ready(server: Server) -> bool:
    """Return whether the server says that it is ready."""
    try:
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [bound.getsockname()[1] for bound in sockets]
    for bound in sockets:
        bound.close()
    return ports


def processes_of(word: str) -> list[int]:
    """Return the ids of the processes whose command line or environment names `word`, zombies left out."""
    entries = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.name != str(os.getpid()))
    return [int(entry.name) for entry in entries if _names(entry, word)]


def _names(process: Path, word: str) -> bool:
    try:
        text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        return word.encode() in text
    except OSError:
        return False
