"""The engine of a worker of NVIDIA Dynamo: an engine process of ours, behind the interface that Dynamo's worker calls.

Dynamo's own `Worker` keeps discovery, signals and draining; the engine process keeps scheduling and KV. Runs in the
environment that `make serve-many` makes (ai-dynamo 1.6), which needs no torch: the engine runs in the project's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from dynamo.common.backend import LLMEngine
from dynamo.common.backend.engine import EngineConfig, LlmRegistration
from dynamo.common.backend.publisher import ComponentSnapshot, PushSource
from dynamo.common.backend.worker import WorkerConfig
from dynamo.llm.exceptions import EngineShutdown, InvalidArgument

from backend.config import ConfigFile, ExecutorKind, load_config
from backend.config import EngineConfig as BrosConfig
from backend.core.errors import InvalidRequestError
from backend.dynamo.announcer import Announcer
from backend.dynamo.session import MoveElsewhere, Session
from backend.dynamo.worker_options import make_parser
from backend.link.engine_link import EngineLink
from backend.link.validate import Defaults
from backend.wire import names as wire
from backend.wire.protocol import EngineState, Metrics

logger = logging.getLogger(__name__)

_BLOCKS = "bros_kv_blocks"


class BrosEngine(LLMEngine):  # type: ignore[misc]  # dynamo has no type information here
    """What Dynamo's worker calls: it starts the engine process, and hands requests to it over its socket."""

    def __init__(self, file: ConfigFile, name: str, folder: Path, id_file: Path | None = None) -> None:
        self._file = file
        self._id_file = id_file
        self._name = name
        self._folder = folder
        self._link: EngineLink | None = None
        self._session: Session | None = None
        self._publisher: Any = None

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple[BrosEngine, WorkerConfig]:
        """Read the command line."""
        arguments = make_parser().parse_args(argv)
        file = load_config(path=arguments.config)
        config = WorkerConfig(
            namespace=arguments.namespace,
            component="bros",
            model_name=str(arguments.folder),
            served_model_name=arguments.name,
            discovery_backend="file",
            request_plane="tcp",
            event_plane="zmq",
        )
        return cls(file, arguments.name, arguments.folder, arguments.id_file), config

    async def start(self, worker_id: int) -> EngineConfig:
        """Start the engine process, or connect to the one that is there; return what the router may know of it."""
        self._link = EngineLink(self._file, f"dynamo-{worker_id}", self._note)
        await asyncio.to_thread(self._link.wait_until_ready, _log_state)
        if self._id_file is not None:
            self._id_file.write_text(str(worker_id))
        self._session = Session(self._link, Defaults("bros", wire.PER_REQUEST, self._file.config.service))
        blocks = LlmRegistration(kv_cache_block_size=_block_size(self._file.config))
        return EngineConfig(model=str(self._folder), served_model_name=self._name, llm=blocks)

    async def kv_event_sources(self) -> list[Any]:
        """Return where the router learns what the prefix cache holds; nowhere without one."""
        if not self._file.config.scheduler.prefix_caching:
            return []
        return [PushSource(self._announce, dp_rank=0)]

    def _announce(self, publisher: Any) -> None:
        """Tell the router through `publisher` from now on, until the link is closed."""
        assert self._link is not None, "the link comes before its listeners"
        announcer = Announcer(publisher, _block_size(self._file.config), self._link.watch_prefixes_anew)
        self._link.watch_prefixes(announcer.take)

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer. A client that has gone, and a request that Dynamo ends, cancel it in the engine."""
        assert self._session is not None, "generate comes after start"
        answer = self._session.answer(request, dict(context.metadata or {}))
        try:
            async for chunk in answer:
                yield chunk
                if context.is_stopped():
                    return
        except InvalidRequestError as error:
            raise InvalidArgument(str(error)) from error
        except MoveElsewhere as error:
            raise EngineShutdown(str(error)) from error
        finally:
            await answer.aclose()

    async def cleanup(self) -> None:
        """Leave the engine, which ends by itself when nobody is connected."""
        link, self._link = self._link, None
        if link is not None:
            await asyncio.to_thread(link.close)

    def component_metrics_dp_ranks(self) -> list[int]:
        return [0]

    def attach_snapshot_publisher(self, publisher: Any) -> None:
        self._publisher = publisher

    def _note(self, metrics: Metrics) -> None:
        """Tell the router how full the cache is; called on the link's thread."""
        blocks = {sample.labels["state"]: int(sample.value) for sample in metrics.samples if sample.name == _BLOCKS}
        if self._publisher is not None and blocks:
            total = sum(blocks.values())
            used = total - blocks["free"]
            snapshot = ComponentSnapshot(
                kv_used_blocks=used, kv_total_blocks=total, gpu_cache_usage=used / max(1, total), dp_rank=0
            )
            self._publisher.publish(0, snapshot)


def _block_size(config: BrosConfig) -> int:
    return config.sim.block_size if config.executor is ExecutorKind.SIM else config.torch.block_size


def _log_state(state: EngineState) -> None:
    percent = "" if state.fraction is None else f" {state.fraction:.0%}"
    logger.info("engine %s%s %s", state.stage.value, percent, state.detail)
