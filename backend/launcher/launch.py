"""Decided before the first process starts: addresses, files, and the command lines of engine and server."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend.config import CONFIG_VARIABLE, REPOSITORY_ROOT, load_config, parse_config
from backend.core.errors import ConfigError
from backend.launcher import confine
from backend.launcher.endpoints import Endpoints
from backend.launcher.reaper import RUN_VARIABLE, shared_memory_prefix
from backend.launcher.triton_install import TritonInstall

# Who loads a model, registers shared memory or sets a log file acts as the server's user. Triton takes the key of these
# endpoints on its command line only, which every user of the machine may read. So no request can hold this key: neither
# HTTP/1 nor gRPC takes a header with a line break in its name.
CLOSED_APIS = "model-repository,shared-memory,trace,logging:closed on this server\n=closed\n"
EXTRA_EXIT_S = 5.0  # what the engine may take to end the requests that outlast a drain, and then Triton to pass that on


@dataclass(frozen=True, slots=True)
class Command:
    """A process to run: `arguments`, the whole environment, the file that takes its output, and where it listens."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ports: Mapping[str, int] = field(default_factory=dict)  # by their names


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of engine and server. Times are in seconds."""

    run_directory: Path
    log_directory: Path
    triton: TritonInstall
    endpoints: Endpoints
    drain_timeout_s: float
    start_timeout_s: float
    canary_timeout_s: float = 10.0  # 0: never end a server that gives no answer
    engine_timeout_s: float = 120.0  # the same of an engine; a step of a large model on few cores may take most of it
    max_triton_bytes: int = 0  # of memory; 0: never end a server that takes much
    front_options: Sequence[str] = ()  # of `bros-openai`, beyond where it listens and what it asks

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
        python = load_config(self.config_path).config.engine_python or sys.executable
        arguments = [python, "-m", "backend.server.engine_process"]
        return Command("engine", arguments, self._environment(), self.log_directory / "engine.log")

    def server(self) -> Command:
        """Return the command of the Triton server, which `confine` becomes."""
        arguments = [sys.executable, "-I", "-S", confine.__file__, str(self.triton.binary), *self._flags()]
        environment = self._environment() | dict(self.triton.environment) | {"OPENBLAS_NUM_THREADS": "1"}
        at = self.endpoints
        ports = {"http": at.http_port, "grpc": at.grpc_port, "metrics": at.metrics_port}
        return Command("tritonserver", arguments, environment, self.log_directory / "triton.log", ports)

    def front(self) -> Command | None:
        """Return the command of the front door; None where there is to be none."""
        at = self.endpoints
        if at.openai_port is None:
            return None
        where = ["--triton", f"grpc://{at.grpc_url}", "--host", at.host, "--port", str(at.openai_port)]
        arguments = [sys.executable, "-m", "front.main", *where, *self.front_options]
        arguments += ["--drain-timeout-s", str(self.drain_timeout_s + EXTRA_EXIT_S)]
        log = self.log_directory / "openai.log"
        # Whatever address of this machine it is: the door reaches it without the proxy that the environment may name.
        environment = self._environment() | {"no_grpc_proxy": at.host}
        return Command("bros-openai", arguments, environment, log, {"openai": at.openai_port})

    def _flags(self) -> list[str]:
        at = self.endpoints
        flags = [
            f"--model-repository={self.models}",
            "--model-control-mode=none",  # no request can load a model
            "--disable-auto-complete-config",
            f"--http-address={at.http_host}",
            f"--http-port={at.http_port}",
            f"--grpc-address={at.url_host}",
            f"--grpc-port={at.grpc_port}",
            f"--metrics-address={at.http_host}",
            f"--metrics-port={at.metrics_port}",
            "--allow-gpu-metrics=false",
            "--grpc-header-forward-pattern=(?i)x-.*",
            f"--http-restricted-api={CLOSED_APIS}",
            f"--grpc-restricted-protocol={CLOSED_APIS}",
            f"--exit-timeout-secs={round(self.drain_timeout_s + 2 * EXTRA_EXIT_S)}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(self.run_directory)}",
            # A stub sends from one thread: more here only take turns, and a canary could pass one that hangs.
            "--backend-config=python,thread-pool-size=1",
            *self.triton.flags,
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
            # On a full disk CPython 3.11 leaves files cut short, which end every later start with an EOFError.
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def write_files(launch: Launch, engine_config: Mapping[str, Any], model_repository: Path) -> None:
    """Write what both processes read: `engine.json` with this launch's socket, and a copy of the model repository.

    Raises ConfigError.
    """
    given = {"allow_inspect": launch.endpoints.is_loopback, **engine_config.get("service", {})}
    # Open requests finish while Triton drains; the engine is stopped after that, to end those that have not.
    ours = {"socket_path": str(launch.socket_path), "start_engine": False, "drain_timeout_s": 0.0}
    service = {**given, **ours}
    values = {**engine_config, "service": service}
    parse_config(values)  # a socket's path may be too long where TMPDIR is
    launch.config_path.write_text(json.dumps(values, indent=2))
    if not any(model_repository.glob("*/config.pbtxt")):
        raise ConfigError(f"--model-repository: {str(model_repository)!r} holds no model (no */config.pbtxt)")
    shutil.copytree(model_repository, launch.models, ignore=shutil.ignore_patterns("__pycache__"))
    launch.log_directory.mkdir(parents=True, exist_ok=True)
