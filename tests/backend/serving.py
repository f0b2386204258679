"""An engine process inside the test's own: the real server, engine and link, on the simulated executor."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from backend.config import ConfigFile, EngineConfig, ExecutorKind, ServiceSettings
from backend.executors.sim import SimSettings
from backend.link.engine_link import EngineLink
from backend.policy.settings import SchedulerSettings
from backend.server.engine_process import engine_socket
from backend.server.socket_server import EngineServer
from backend.wire.protocol import Chunk, End, Generation, Sampling

FAST = SimSettings(coefficients=(1e-4, 0.0, 0.0, 0.0, 0.0))  # 0.1 ms a step
WAIT_S = 30.0  # for what takes milliseconds, on a machine that may stall


def make_file(
    directory: Path, sim: SimSettings = FAST, scheduler: SchedulerSettings | None = None, **service: Any
) -> ConfigFile:
    """Return a configuration on the simulated executor, written to its file; nobody starts an engine for it."""
    settings = ServiceSettings(
        **{"socket_path": str(directory / "s"), "start_engine": False, "metrics_flush_s": 0.01, **service}
    )
    config = EngineConfig(
        executor=ExecutorKind.SIM, service=settings, sim=sim, scheduler=scheduler or SchedulerSettings()
    )
    path = directory / "engine.json"
    path.write_bytes(msgspec.json.encode(config))
    return ConfigFile(path, config)


@contextmanager
def running(file: ConfigFile) -> Iterator[EngineServer]:
    """Run an engine process's server in threads of this process, and drain it at the end."""
    with engine_socket(file.socket_path) as listener:
        server = EngineServer(file, listener, exits_when_unused=False)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            server.request_stop()
            thread.join(WAIT_S)
            assert not thread.is_alive()


@contextmanager
def linked(file: ConfigFile, name: str = "bros", **options: Any) -> Iterator[EngineLink]:
    """Make a stub's link to the engine of `file`, and wait until that is ready."""
    link = EngineLink(file, name, **options)
    try:
        link.wait_until_ready(lambda _: None)
        yield link
    finally:
        link.close()


@dataclass
class Answer:
    """The chunks of one request, as a sink collects them."""

    chunks: list[Chunk] = field(default_factory=list)
    _arrivals: queue.SimpleQueue[Chunk] = field(default_factory=queue.SimpleQueue)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._arrivals.put(chunk)
        if chunk.end is not None:
            self._ended.set()

    def first(self) -> Chunk:
        """Wait for the first chunk."""
        return self._arrivals.get(timeout=WAIT_S)

    def end(self) -> End:
        """Wait for the end."""
        assert self._ended.wait(WAIT_S), f"no end: {self.chunks}"
        ends = [chunk.end for chunk in self.chunks if chunk.end is not None]
        assert len(ends) == 1
        return ends[0]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]


def make_generation(max_tokens: int = 4, **options: Any) -> Generation:
    """Return a streamed real-time request."""
    defaults: dict[str, Any] = {"priority_class": "rt", "text": "hi", "is_streamed": True}
    if not {"messages", "token_ids"}.isdisjoint(options):
        del defaults["text"]
    return Generation(**{**defaults, "sampling": Sampling(max_tokens=max_tokens), **options})


def ask(link: EngineLink, client_id: str = "", **options: Any) -> Answer:
    """Submit a request and return its answer, which fills."""
    answer = Answer()
    link.submit(client_id, make_generation(**options), answer)
    return answer
