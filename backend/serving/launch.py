"""What is decided before the first process starts: addresses, files, and the command lines of engine and server."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.config import CONFIG_VARIABLE, REPOSITORY_ROOT, parse_config
from backend.errors import ConfigError
from backend.serving.reaper import RUN_VARIABLE, shared_memory_prefix
from backend.serving.triton_install import TritonInstall

ADMIN_HEADER = "bros-admin-key"
ADMIN_APIS = "model-repository,shared-memory,trace,logging"
STACK_LIMIT_KIB = 262_144  # a form-encoded body of some MB overflows the default stack of server 2.51
# A batch thread that wakes up waits for a free core, or its turn. A response wakes several threads on its way, each of
# which could push a thread of the engine off its core, while the others wait for that one. Stubs inherit it.
AS_BATCH = "chrt --batch --pid 0 $$"
EXTRA_EXIT_S = 5.0  # what the server may take beyond its own exit timeout


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where clients connect; port 0 in the constructor's place is resolved by `choose_endpoints`."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def http_url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.host}:{self.metrics_port}/metrics"


@dataclass(frozen=True, slots=True)
class Command:
    """A process to run: `arguments`, the whole environment, and the file that takes its output."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of engine and server. Times are in seconds."""

    run_directory: Path
    log_directory: Path
    triton: TritonInstall
    endpoints: Endpoints
    drain_timeout_s: float
    start_timeout_s: float
    admin_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def socket_path(self) -> Path:
        return self.run_directory / "engine.sock"

    @property
    def config_path(self) -> Path:
        return self.run_directory / "engine.json"

    @property
    def models(self) -> Path:
        return self.run_directory / "models"

    def engine(self) -> Command:
        """Return the command of the engine process."""
        arguments = [sys.executable, "-m", "backend.engine_process"]
        return Command("engine", arguments, self._environment(), self.log_directory / "engine.log")

    def server(self) -> Command:
        """Return the command of the Triton server; the shell in front of it sets its stack limit and scheduling."""
        prepare = f"ulimit -s {STACK_LIMIT_KIB} 2>/dev/null; {AS_BATCH} 2>/dev/null"
        arguments = ["sh", "-c", f'{prepare}; exec "$@"', "sh", str(self.triton.binary)]
        environment = self._environment() | dict(self.triton.environment) | {"OPENBLAS_NUM_THREADS": "1"}
        return Command("tritonserver", [*arguments, *self._flags()], environment, self.log_directory / "triton.log")

    def _flags(self) -> list[str]:
        at = self.endpoints
        flags = [
            f"--model-repository={self.models}",
            "--model-control-mode=explicit",  # so that the supervisor may load a model again
            "--load-model=*",
            "--disable-auto-complete-config",
            f"--http-address={at.host}",
            f"--http-port={at.http_port}",
            f"--grpc-address={at.host}",
            f"--grpc-port={at.grpc_port}",
            f"--metrics-address={at.host}",
            f"--metrics-port={at.metrics_port}",
            "--allow-gpu-metrics=false",
            "--grpc-header-forward-pattern=(?i)x-.*",
            f"--http-restricted-api={ADMIN_APIS}:{ADMIN_HEADER}={self.admin_key}",
            f"--grpc-restricted-protocol={ADMIN_APIS}:{ADMIN_HEADER}={self.admin_key}",
            f"--exit-timeout-secs={max(1, round(self.drain_timeout_s))}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(self.run_directory)}",
            "--backend-config=python,thread-pool-size=1",  # a stub sends from one thread: more here only take turns
        ]
        return flags + ([f"--backend-directory={self.triton.backends}"] if self.triton.backends else [])

    def _environment(self) -> dict[str, str]:
        """Return this environment plus our marks; the interpreter's own folder leads PATH, this checkout PYTHONPATH."""
        inherited = dict(os.environ)
        return inherited | {
            RUN_VARIABLE: str(self.run_directory),
            CONFIG_VARIABLE: str(self.config_path),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY_ROOT), *filter(None, [inherited.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
        }


def write_files(launch: Launch, engine_config: Mapping[str, Any], model_repository: Path) -> None:
    """Write what both processes read: `engine.json` with this launch's socket, and a copy of the model repository.

    The copy is ours to touch: a model is loaded again only when its files look changed. Raises ConfigError.
    """
    given = {"allow_inspect": launch.endpoints.is_loopback, **engine_config.get("service", {})}
    service = {**given, "socket_path": str(launch.socket_path), "start_engine": False}
    values = {**engine_config, "service": service}
    parse_config(values)  # a socket's path may be too long where TMPDIR is
    launch.config_path.write_text(json.dumps(values, indent=2))
    if not any(model_repository.glob("*/config.pbtxt")):
        raise ConfigError(f"--model-repository: {str(model_repository)!r} holds no model (no */config.pbtxt)")
    shutil.copytree(model_repository, launch.models, ignore=shutil.ignore_patterns("__pycache__"))
    launch.log_directory.mkdir(parents=True, exist_ok=True)


def choose_endpoints(host: str, ports: Mapping[str, int]) -> Endpoints:
    """Check that the ports `http`, `grpc`, `metrics` are free on `host`; 0 takes any free one. Raises ConfigError."""
    named = [port for port in ports.values() if port]
    if len(set(named)) < len(named):
        raise ConfigError(f"the ports {', '.join(map(str, named))} are not all different")
    with ExitStack() as bound:
        sockets = {name: bound.enter_context(_bind(host, name, port)) for name, port in ports.items()}
        return Endpoints(host, *(sockets[name].getsockname()[1] for name in ("http", "grpc", "metrics")))


def _bind(host: str, name: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    candidate = socket.socket(family, socket.SOCK_STREAM)
    candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
    try:
        candidate.bind((host, port))
    except OSError as error:
        candidate.close()
        raise ConfigError(
            f"{name} port {port} on {host}: {error.strerror}; choose another with --{name}-port"
        ) from error
    return candidate
