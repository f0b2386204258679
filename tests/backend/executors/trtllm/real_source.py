"""Loads TensorRT-LLM's real scheduler files without its compiled bindings, from a copy of its source.

BROS_TRTLLM_SOURCE names a directory that has `tensorrt_llm/` in it: a checkout, or an installation's site-packages.
Only three files of it run. Their imports are stubbed here: requests and managers are our fakes. The C++ algorithms
behind the `Bind...` classes are our fakes, too.
"""

from __future__ import annotations

import enum
import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.backend.executors.trtllm.fake_managers import FakeCapacityScheduler, FakeKVManagerV2, micro_batch
from tests.backend.executors.trtllm.fake_requests import FakeLlmRequest, State

VARIABLE = "BROS_TRTLLM_SOURCE"
_PACKAGE = "tensorrt_llm._torch.pyexecutor"


class CapacitySchedulerPolicy(enum.StrEnum):
    MAX_UTILIZATION = "MAX_UTILIZATION"
    GUARANTEED_NO_EVICT = "GUARANTEED_NO_EVICT"
    STATIC_BATCH = "STATIC_BATCH"

    def _to_pybind(self) -> str:
        return self.value


class ContextChunkingPolicy(enum.StrEnum):
    FIRST_COME_FIRST_SERVED = "FIRST_COME_FIRST_SERVED"
    EQUAL_PROGRESS = "EQUAL_PROGRESS"
    FORCE_CHUNK = "FORCE_CHUNK"

    def _to_pybind(self) -> str:
        return self.value


class WaitingQueuePolicy(enum.StrEnum):
    FCFS = "fcfs"
    PRIORITY = "priority"


class Placeholder:
    """Stands for a class that is only named in annotations; nothing may call it."""

    def __init__(self, *_: object, **__: object) -> None:
        raise AssertionError("a stub of TensorRT-LLM's bindings was called")


class BoundCapacityScheduler:
    """`bindings.internal.algorithms.CapacityScheduler`."""

    def __init__(self, max_num_requests: int, **_: object) -> None:
        self._max_num_requests = max_num_requests

    def __call__(self, active: Any, kv: Any, *_: object) -> Any:
        return FakeCapacityScheduler(kv, self._max_num_requests).schedule_request(active)


class BoundMicroBatchScheduler:
    """`bindings.internal.algorithms.MicroBatchScheduler`."""

    def __init__(self, ctx_chunk_config: Any, *_: object, **__: object) -> None:
        self._unit = 32 if ctx_chunk_config is None else ctx_chunk_config[1]

    def __call__(self, active: Any, inflight: set[int], max_batch_size: int, max_num_tokens: int) -> Any:
        return micro_batch(active, inflight, max_batch_size, max_num_tokens, self._unit)


@dataclass
class RealSource:
    """The modules as loaded; None where this version has no such file."""

    scheduler: Any
    scheduler_v2: Any | None
    waiting_queue: Any | None

    def make_v1(self, kv: Any, max_batch_size: int, max_num_tokens: int) -> Any:
        """Return a real SimpleScheduler over the fake C++ algorithms."""
        module = self.scheduler
        capacity = module.BindCapacityScheduler(
            max_batch_size, kv, None, scheduler_policy=CapacitySchedulerPolicy.MAX_UTILIZATION
        )
        config = (ContextChunkingPolicy.FIRST_COME_FIRST_SERVED, kv.tokens_per_block)
        return module.SimpleScheduler(capacity, module.BindMicroBatchScheduler(max_batch_size, max_num_tokens, config))

    def make_v2(self, kv: Any, max_batch_size: int, max_num_tokens: int) -> Any:
        """Return a real KVCacheV2Scheduler."""
        assert self.scheduler_v2 is not None
        return self.scheduler_v2.KVCacheV2Scheduler(
            max_batch_size=max_batch_size,
            max_num_tokens=max_num_tokens,
            kv_cache_manager=kv,
            scheduler_policy=CapacitySchedulerPolicy.MAX_UTILIZATION,
            ctx_chunk_config=(ContextChunkingPolicy.FIRST_COME_FIRST_SERVED, kv.tokens_per_block),
        )


def load(root: Path, monkeypatch: pytest.MonkeyPatch) -> RealSource:
    """Load what `root` has, under the true dotted names, for the duration of a test."""
    for name, names in _stubs().items():
        monkeypatch.setitem(sys.modules, name, _module(name, names))
    folder = root.joinpath(*_PACKAGE.split("."))
    if (folder / "scheduler.py").is_file():  # up to 1.2: a module
        return RealSource(_load(folder / "scheduler.py", f"{_PACKAGE}.scheduler", monkeypatch), None, None)
    package = f"{_PACKAGE}.scheduler"
    monkeypatch.setitem(sys.modules, package, _module(package, {}))
    found = {
        name: _load(path, f"{package}.{name}", monkeypatch)
        for name in ("scheduler", "scheduler_v2", "waiting_queue")
        if (path := folder / "scheduler" / f"{name}.py").is_file()
    }
    return RealSource(found["scheduler"], found.get("scheduler_v2"), found.get("waiting_queue"))


def _load(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def _module(name: str, names: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(names)

    def placeholder(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (Placeholder,), {})

    module.__getattr__ = placeholder  # type: ignore[method-assign]  # PEP 562: names that newer versions import
    return module


def _stubs() -> dict[str, dict[str, Any]]:
    """The modules that the three files import, by dotted name; see docs/trtllm.md."""
    log = logging.getLogger("tensorrt_llm")
    log.warning_once = log.warning  # type: ignore[attr-defined]  # as TensorRT-LLM's logger has it
    no_drafts: Callable[[Any], int] = lambda _: 0  # noqa: E731  # a stub
    algorithms = _module(
        "algorithms", {"CapacityScheduler": BoundCapacityScheduler, "MicroBatchScheduler": BoundMicroBatchScheduler}
    )
    batch_manager = _module("batch_manager", {"ContextChunkingConfig": lambda policy, unit: (policy, unit)})
    internal = {"algorithms": algorithms, "batch_manager": batch_manager}
    kv_manager = {
        "KVCacheManagerV2": FakeKVManagerV2,
        "BlockReusePolicy": enum.Enum("BlockReusePolicy", "ALL_REUSABLE PER_REQUEST"),
        "_settle_context_cursor": lambda *_: None,
    }
    request = {
        "LlmRequest": FakeLlmRequest,
        "LlmRequestState": State,
        "get_draft_token_length": no_drafts,
        "rewind_context_after_cache_drop": _rewind,
        "get_multimodal_encoder_token_lengths": no_drafts,
        "is_multimodal_encoder_ready": lambda _: True,
    }
    policies = {
        "CapacitySchedulerPolicy": CapacitySchedulerPolicy,
        "ContextChunkingPolicy": ContextChunkingPolicy,
        "WaitingQueuePolicy": WaitingQueuePolicy,
    }
    return {
        "strenum": {"StrEnum": enum.StrEnum},
        "tensorrt_llm": {},
        "tensorrt_llm.bindings": {"internal": _module("internal", internal)},
        "tensorrt_llm.bindings.internal": internal,
        "tensorrt_llm.bindings.internal.batch_manager": vars(batch_manager),
        "tensorrt_llm.llmapi": {},
        "tensorrt_llm.llmapi.llm_args": policies,
        "tensorrt_llm.logger": {"logger": log},
        "tensorrt_llm.executor": {},
        "tensorrt_llm.executor.request": {"DEFAULT_REQUEST_PRIORITY": 0.5},
        "tensorrt_llm._torch": {},
        _PACKAGE: {},
        f"{_PACKAGE}.executor_request_queue": {},
        f"{_PACKAGE}.kv_cache": {},
        f"{_PACKAGE}.kv_cache_manager_v2": kv_manager,  # its module in mid-2026
        f"{_PACKAGE}.kv_cache.kv_cache_manager_v2": kv_manager,
        f"{_PACKAGE}.llm_request": request,
        f"{_PACKAGE}.resource_manager": kv_manager,
    }


def _rewind(request: FakeLlmRequest, *_: object) -> None:
    request.context_current_position = 0
