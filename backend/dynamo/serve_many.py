"""`make serve-many`: Dynamo's frontend and N workers, each with an engine process of its own, on one machine.

    python -m backend.dynamo.serve_many --replicas 2 --executor sim

It needs no etcd and no NATS. Ctrl-C ends all: the workers drain, then the frontend stops. A process that dies is
started again. The open streams of a worker that dies go on at another one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from backend.config import REPOSITORY_ROOT, parse_config
from backend.core.errors import ConfigError
from backend.dynamo.many_options import check_free, engine_values, parser
from backend.dynamo.model_folder import model_folder
from backend.launcher.child import Child
from backend.launcher.launch import Command

_DISCOVERY = "discovery"
NAME = "bros"
_MIGRATIONS = 16  # how often a stream may move to another worker; a dead one is tried again until its lease ends
_START_TIMEOUT_S = 300.0
_LOOK_S, _LOST_S = 1.0, 5.0  # how often leases are looked at, and how long one may be lacking beyond a drain
_RESTART_PAUSE_S = 1.0
_STOP_TIMEOUT_S = 30.0  # beyond the drain
_DRAIN_VARIABLE = "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"  # so long a worker goes on; then its streams move
_HOST_VARIABLES = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST")  # else all interfaces
# Real-time requests go first; a best-effort one is let through now and then. See docs/many.md.
_POLICY = """\
default_policy_family: be
uncached_isl_buckets: [{min_tokens: 0, bucket: all}]
policy_classes:
  - {name: rt, policy_family: rt, cache_bucket: all, queue_policy: fcfs, quantum: 8}
  - {name: be, policy_family: be, cache_bucket: all, queue_policy: fcfs, quantum: 1}
"""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # takes no proxy to our own children
_HINT = """\
Serving {name} on {url} with {replicas} replicas ({executor} executor). Type:
  curl -N {url}/v1/chat/completions -H 'content-type: application/json' -H 'x-dynamo-meta-policy-class: rt' \\
    -d '{{"model": "{name}", "stream": true, "max_tokens": 64, "messages": [{{"role": "user", "content": "Hello"}}]}}'
Best effort: the same with 'x-dynamo-meta-policy-class: be'. Workers: {pids}. Logs: {logs}. Ctrl-C ends all.
"""


def main() -> int:
    """Run the command line; return the exit status."""
    arguments = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="bros-many-", ignore_cleanup_errors=True) as directory:
        try:
            asyncio.run(_Many(arguments, Path(directory)).run())
        except (ConfigError, RuntimeError) as error:
            print(f"serve-many: {error}", file=sys.stderr)
            return 2 if isinstance(error, ConfigError) else 1
    return 0


def _say(text: str, stream: TextIO) -> None:
    """Print; that nobody reads any more is no reason to end, nor to leave a worker down."""
    with contextlib.suppress(OSError):
        print(text, end="", file=stream, flush=True)


class _Many:
    """The frontend and the workers of one run, in a directory of its own."""

    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        self._arguments = arguments
        self._directory = directory
        self._stop = asyncio.Event()
        self._has_prefix_cache = False
        self._url = f"http://{arguments.host}:{arguments.port}"

    async def run(self) -> None:
        """Start everything, say what to type, keep the workers alive, and stop all when asked to."""
        for option, port in (("--port", self._arguments.port), ("--tiers-port", self._arguments.tiers_port)):
            if port is not None:
                check_free(option, self._arguments.host, port)
        every = engine_values(self._arguments)
        configs = [parse_config(each) for each in every]
        self._has_prefix_cache = any(config.scheduler.prefix_caching for config in configs)
        folder = model_folder(configs[0], self._directory / "model")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        fronts = [self._frontend(), *([] if self._arguments.tiers_port is None else [self._tier_door()])]
        workers = [self._worker(index, each, folder) for index, each in enumerate(every)]
        try:
            for child in (*fronts, *workers):
                await child.start()
            await self._wait_until_ready(fronts, workers)
            self._say_hint(workers)
            await self._watch(fronts, workers)
        finally:
            self._stop.set()
            await asyncio.gather(
                *(worker.stop(self._arguments.drain_timeout_s + _STOP_TIMEOUT_S) for worker in workers)
            )
            await asyncio.gather(*(front.stop(_STOP_TIMEOUT_S) for front in fronts))
            for child in (*workers, *fronts):
                await child.kill()
            await self._engines_end()

    async def _engines_end(self) -> None:
        """Wait for the engines, which end by themselves once their workers are gone."""
        give_up_s = time.monotonic() + _STOP_TIMEOUT_S
        while list(self._directory.glob("*.sock")) and time.monotonic() < give_up_s:
            await asyncio.sleep(0.1)

    async def _watch(self, fronts: Sequence[Child], workers: Sequence[Child]) -> None:
        """Keep all alive until asked to stop."""
        keepers = [asyncio.create_task(self._keep(child)) for child in (*fronts, *workers)]
        keepers += [asyncio.create_task(self._end_when_lost(worker)) for worker in workers]
        await self._stop.wait()
        for keeper in keepers:
            keeper.cancel()

    async def _keep(self, child: Child) -> None:
        while not self._stop.is_set():
            code = await child.exited()
            if not self._stop.is_set():
                self._unregister(child)
                _say(f"{child.command.name} ended with code {code}; starting it again\n", sys.stderr)
                await asyncio.sleep(_RESTART_PAUSE_S)
                await child.start()

    async def _end_when_lost(self, worker: Child) -> None:
        """End a worker that runs, but whose lease has ended: it hung, for its streams too, and Dynamo never takes it
        back. One that drains has no lease either; it ends by itself."""
        lost_s = 0.0
        while not self._stop.is_set():
            await asyncio.sleep(_LOOK_S)
            is_lost = worker.is_running and self._has_joined(worker) and not self._entries(worker)
            lost_s = lost_s + _LOOK_S if is_lost else 0.0
            if lost_s > self._arguments.drain_timeout_s + _LOST_S:
                _say(f"{worker.command.name} has lost its lease; ending it\n", sys.stderr)
                await worker.kill()
                lost_s = 0.0

    def _unregister(self, worker: Child) -> None:
        """Take a worker that has died out of Dynamo's directory at once, not when its lease ends seconds later.

        Dynamo 1.6.1 fails requests, rather than moving them, that come in a burst for a worker that is not there.
        """
        if self._has_joined(worker):
            for entry in self._entries(worker):
                entry.unlink(missing_ok=True)
            self._id_file(worker.command.name).unlink()

    def _has_joined(self, worker: Child) -> bool:
        return self._id_file(worker.command.name).exists()

    def _entries(self, worker: Child) -> list[Path]:
        """Return what Dynamo's directory has of a worker that has joined."""
        worker_id = int(self._id_file(worker.command.name).read_text())
        return list((self._directory / _DISCOVERY).rglob(f"*{worker_id:x}"))

    def _id_file(self, name: str) -> Path:
        return self._directory / f"{name}.id"

    async def _wait_until_ready(self, fronts: Sequence[Child], workers: Sequence[Child]) -> None:
        """Wait until every worker has joined and the frontend answers; it knows its workers before their model."""
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while not self._stop.is_set():
            for child in (*fronts, *workers):
                if not child.is_running:
                    raise RuntimeError(f"{child.command.name} ended while starting; its log:\n{child.log_tail()}")
            if await asyncio.to_thread(self._num_instances) >= len(workers) and await asyncio.to_thread(self._answers):
                return
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"not ready within {_START_TIMEOUT_S:g} s; logs: {self._directory}")
            await asyncio.sleep(0.2)

    def _num_instances(self) -> int:
        try:
            with _OPENER.open(f"{self._url}/health", timeout=2.0) as answer:
                instances = json.load(answer).get("instances", [])
        except (OSError, ValueError):
            return 0
        return sum(instance.get("endpoint") == "generate" for instance in instances)

    def _answers(self) -> bool:
        """Return whether a token comes back."""
        body = json.dumps({"model": NAME, "prompt": "?", "max_tokens": 1}).encode()
        headers = {"content-type": "application/json", "x-dynamo-meta-policy-class": "rt"}
        request = urllib.request.Request(f"{self._url}/v1/completions", body, headers)
        try:
            with _OPENER.open(request, timeout=10.0):
                return True
        except OSError:
            return False

    def _say_hint(self, workers: list[Child]) -> None:
        pids = ", ".join(str(worker.pid) for worker in workers)
        text = _HINT.format(
            name=NAME,
            url=self._url,
            replicas=len(workers),
            executor=self._arguments.executor,
            pids=pids,
            logs=self._directory,
        )
        if self._arguments.tiers_port is not None:
            text += f"Tiers of OpenAI's API: http://{self._arguments.host}:{self._arguments.tiers_port}/v1\n"
        _say(text, sys.stdout)

    def _frontend(self) -> Child:
        policy = self._directory / "policy.yaml"
        policy.write_text(_POLICY)
        arguments = ["--http-host", self._arguments.host, "--http-port", str(self._arguments.port)]
        arguments += ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
        arguments += ["--migration-limit", str(_MIGRATIONS), "--router-mode", self._arguments.router]
        if self._arguments.router == "kv":
            arguments += self._index_options()
            arguments += ["--router-policy-config", str(policy)] if self._arguments.class_queues else []
        return self._child("frontend", ["-m", "dynamo.frontend", *arguments])

    def _tier_door(self) -> Child:
        arguments = ["--host", self._arguments.host, "--port", str(self._arguments.tiers_port)]
        return self._child("tier-door", ["-m", "backend.dynamo.tier_door", *arguments, "--frontend", self._url])

    def _index_options(self) -> list[str]:
        """Return where the router knows from which prefixes a worker holds."""
        if not self._arguments.kv_events:
            return ["--no-router-kv-events"]
        ttl_s = self._arguments.predict_s if self._has_prefix_cache else 0.0
        return ["--router-predicted-ttl-secs", f"{ttl_s:g}"] if ttl_s else []

    def _worker(self, index: int, values: Mapping[str, Any], folder: Path) -> Child:
        """A worker whose engine runs under the interpreter of this process."""
        service = {**values.get("service", {}), "socket_path": str(self._directory / f"{index}.sock")}
        service |= {"start_engine": True, "python": sys.executable}
        config = self._directory / f"{index}.json"
        config.write_text(json.dumps({**values, "service": service}))
        name = f"worker-{index}"
        arguments = ["--config", str(config), "--folder", str(folder), "--name", NAME]
        arguments += ["--id-file", str(self._id_file(name))]
        return self._child(name, ["-m", "backend.dynamo.worker", *arguments])

    def _child(self, name: str, arguments: list[str]) -> Child:
        python = self._arguments.environment / "bin" / "python"
        if not python.exists():
            raise ConfigError(f"{python} does not exist: `make serve-many` installs Dynamo there")
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY_ROOT),
            "DYN_FILE_KV": str(self._directory / _DISCOVERY),
            "DYN_EVENT_PLANE": "zmq",
            **dict.fromkeys(_HOST_VARIABLES, "127.0.0.1"),
            _DRAIN_VARIABLE: str(round(self._arguments.drain_timeout_s)),
        }
        return Child(Command(name, [str(python), *arguments], environment, self._directory / f"{name}.log"))


if __name__ == "__main__":
    sys.exit(main())
