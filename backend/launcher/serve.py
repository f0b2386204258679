"""`bros-serve`: one command from a checkout to a served model.

Finds a Triton server, starts it and the engine, and waits until a real request comes back. Then it prints what to type
next, supervises both, and drains on Ctrl-C. Exit codes: 0 stopped as asked, 1 failed, 2 wrong settings.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from backend.config import ExecutorKind, parse_config
from backend.core.errors import ConfigError
from backend.core.ownership import own
from backend.launcher.endpoints import Endpoints, choose_endpoints
from backend.launcher.launch import Launch, write_files
from backend.launcher.memory_watch import default_bytes
from backend.launcher.options import engine_config, front_options, make_parser
from backend.launcher.run_directory import run_directory
from backend.launcher.supervisor import ServeError, Supervisor
from backend.launcher.triton_install import find_triton
from backend.text.gguf_file import read_gguf
from backend.text.model_files import resolve_model

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # the disk takes no more
_MAX_WORDS = 2000  # of what another program says
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `bros-serve` and exit."""
    options = make_parser().parse_args(arguments)
    console = LastingConsole(stderr=True, highlight=False)
    try:
        serve(options, console)
    except ConfigError as error:
        console.print(f"bros-serve: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except ServeError as error:
        console.print(f"bros-serve: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:  # a full disk, for instance; all that was begun is swept already
        place = f"; temporary files go to TMPDIR, {os.environ.get('TMPDIR', '/tmp')!r}" if error.errno in _FULL else ""
        console.print(f"bros-serve: {error}{place}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped without draining")
        sys.exit(1)


def serve(options: argparse.Namespace, console: Console) -> None:
    """Check everything, launch, and return when asked to stop and drained. Raises ConfigError and ServeError."""
    if options.die_with_parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.umask(0o077)  # prompts and answers are in logs, sockets and shared memory
    values = engine_config(options)
    check_model(values)
    service = parse_config(values).service
    ports = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    if options.openai_port is not None:
        ports["openai"] = options.openai_port
    endpoints = choose_endpoints(options.host, ports)
    with run_directory() as directory, own_logs(options.log_dir):
        launch = Launch(
            run_directory=directory,
            log_directory=options.log_dir or directory / "logs",
            triton=find_triton(options.tritonserver, directory, service.max_prompt_bytes),
            endpoints=endpoints,
            drain_timeout_s=options.drain_timeout_s,
            start_timeout_s=options.start_timeout_s,
            canary_timeout_s=options.canary_timeout_s,
            engine_timeout_s=options.engine_timeout_s,
            max_triton_bytes=_triton_bytes(options.triton_memory_gib),
            front_options=front_options(options, service.default_class, directory),
        )
        if options.api_key_file is not None or options.openai_data_dir is not None:
            check_front(launch)
        write_files(launch, values, options.model_repository)
        with ConsoleReport(console, launch, prints_json=options.json) as report:
            for warning in launch.triton.warnings:
                report.news(f"WARNING: {warning}")
            asyncio.run(supervise(launch, report))


def _triton_bytes(gib: float | None) -> int:
    return default_bytes() if gib is None else int(gib * 2**30)


async def supervise(launch: Launch, report: ConsoleReport) -> None:
    """Run the supervisor until SIGINT, SIGTERM or SIGHUP."""
    supervisor = Supervisor(launch, report)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop)
    await supervisor.run()


def check_model(values: dict[str, Any]) -> None:
    """Check the engine's configuration and that its model exists, before any process starts. Raises ConfigError."""
    config = parse_config(values)
    if config.executor is ExecutorKind.TORCH:
        files = resolve_model(config.torch.model_path)
        if files.is_gguf:
            read_gguf(files.path)
    if config.executor is ExecutorKind.VLLM and config.vllm.model is not None:
        resolve_model(config.vllm.model, "vllm.model")
    if (python := config.engine_python) is not None and shutil.which(python) is None:
        raise ConfigError(f"vllm.python: {python!r} is no program; `make serve-vllm` installs one in .venv-vllm")


@contextmanager
def own_logs(path: Path | None) -> Iterator[None]:
    """Make the folder of `--log-dir`, if any, and let no other launch log there. Raises ConfigError.

    A launch reads in its logs that a server has crashed, and would take another's crash for its own.
    """
    if path is None:
        yield
        return
    with contextlib.ExitStack() as until_the_end:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = until_the_end.enter_context(open(path / "lock", "ab", opener=own))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--log-dir {str(path)!r}: another bros-serve logs there") from error
        except OSError as error:
            raise ConfigError(f"--log-dir {str(path)!r}: {error.strerror}") from error
        yield


def check_front(launch: Launch) -> None:
    """Have `bros-openai` check its file of keys and its folder before anything is loaded. Raises ConfigError."""
    command = launch.front()
    if command is None:
        return
    found = subprocess.run(
        [*command.arguments, "--check"], env=command.environment, capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise ConfigError(f"OpenAI's API: {found.stderr.strip()[-_MAX_WORDS:].removeprefix('bros-openai: ')}")


class LastingConsole(Console):
    """Falls silent where nobody reads any more. rich's own would end the process, and with it the server."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


_unless_gone = contextlib.suppress(OSError)  # a terminal that has gone is no reason to end, nor not to drain


class ConsoleReport:
    """Tells a person what happens: a spinner while loading where there is a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, launch: Launch, prints_json: bool) -> None:
        self._console = console
        self._launch = launch
        self._prints_json = prints_json
        self._status = Status("starting", console=console)
        self._told: set[str] = set()

    def __enter__(self) -> ConsoleReport:
        if self._console.is_terminal:
            with _unless_gone:
                self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        with _unless_gone:
            self._status.stop()

    def progress(self, what: str) -> None:
        """Show the stage; outside of a terminal once for each stage."""
        with _unless_gone:
            self._status.update(what)
        if not self._console.is_terminal:
            for stage in re.sub(r" \d+%", "", what).split(" · "):
                if stage not in self._told:
                    self._told.add(stage)
                    self.news(stage)

    def news(self, what: str) -> None:
        """Print a line."""
        with _unless_gone:
            self._console.print(what, markup=False, soft_wrap=True)

    def ready(self, seconds: float) -> None:
        """Print where the model is served and what to type next; with --json, one line of JSON on stdout."""
        at = self._launch.endpoints
        with _unless_gone:
            self._status.stop()
            if self._prints_json:
                print(json.dumps(describe(at, seconds)), flush=True)
        self.news(
            f"ready in {seconds:.1f} s: models bros, bros_rt, bros_be · gRPC {at.grpc_url} · HTTP {at.http_url} · "
            f"metrics {at.metrics_url} · OpenAI {_openai_words(at)}\n\n"
            + "\n".join(next_commands(at))
            + "\n\nCtrl-C drains and stops."
        )


def describe(at: Endpoints, seconds: float) -> dict[str, object]:
    """Return what a program that starts `bros-serve --json` wants to know."""
    urls = {"http_url": at.http_url, "grpc_url": at.grpc_url, "metrics_url": at.metrics_url}
    return {**urls, "openai_url": at.openai_url, "ready_s": round(seconds, 3), "pid": os.getpid()}


def _openai_words(at: Endpoints) -> str:
    return "off" if at.openai_url is None else f"{at.openai_url}/v1"


def next_commands(at: Endpoints) -> list[str]:
    """Return lines for a person to type next."""
    scripts = Path(sys.executable).parent
    bros = "bros" if shutil.which("bros") else os.path.relpath(scripts / "bros")
    body = '{"text_input": "The sea is", "max_tokens": 32, "stream": true}'
    return [
        f'  {bros} generate --chat "Why is the sky blue?" --class rt --url grpc://{at.grpc_url}',
        f"  curl -N {at.http_url}/v2/models/bros/generate_stream -d '{body}'",
        f"  {bros} top --url grpc://{at.grpc_url} --metrics-url {at.metrics_url}",
        f"  curl -s {at.metrics_url} | grep bros_",
    ]


if __name__ == "__main__":
    main()
