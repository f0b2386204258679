"""Makes the `LLM`, and puts our scheduler inside it or in front of it, as this version of TensorRT-LLM allows.

Inner mode replaces `llm._executor.engine.scheduler` when `LLM()` has returned, before any request. The step loop reads
this attribute in every iteration. The loop must run in our process. TensorRT-LLM runs it there for one rank when
TLLM_WORKER_USE_SINGLE_PROCESS is set.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

from backend.core.clock import Clock
from backend.core.errors import ConfigError, ExecutorError
from backend.engine.engine import Emit
from backend.executors.trtllm.decision import ManagerAdapter
from backend.executors.trtllm.engine import TrtllmEngine
from backend.executors.trtllm.gate import Gate, GateLimits
from backend.executors.trtllm.inner import BrosRequestScheduler
from backend.executors.trtllm.manager_v1 import ManagerV1
from backend.executors.trtllm.manager_v2 import ManagerV2, can_evict
from backend.executors.trtllm.outer import GateAccounts
from backend.executors.trtllm.runtime import Runtime, takes_priority
from backend.executors.trtllm.settings import TrtllmMode, TrtllmSettings
from backend.executors.trtllm.surface import Library, Llm, PyExecutor
from backend.executors.trtllm.tickets import Tickets
from backend.policy.settings import SchedulerSettings

logger = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]  # takes the activity, and the fraction done if known

_SINGLE_PROCESS = "TLLM_WORKER_USE_SINGLE_PROCESS"
_EXECUTOR_ATTRIBUTES = ("scheduler", "kv_cache_manager", "max_num_active_requests")
_MAX_UTIL_FOR_RESUME = 0.95  # this and the next three are TensorRT-LLM's defaults
_DEFAULT_MAX_BATCH_SIZE = 2048
_DEFAULT_MAX_SEQ_LEN = 8192
_DEFAULT_TOKENS_PER_BLOCK = 32


class NoInnerMode(Exception):
    """This installation does not allow inner mode. The message says why."""


def load_engine(
    settings: TrtllmSettings,
    scheduler_settings: SchedulerSettings,
    emit: Emit,
    clock: Clock,
    report: Progress = lambda *_: None,
) -> TrtllmEngine:
    """Load the model and return an engine that serves it. Raises ConfigError, or ExecutorError from TensorRT-LLM."""
    report("importing TensorRT-LLM", None)
    library = _library()
    wants_inner = settings.mode is not TrtllmMode.OUTER and settings.num_ranks == 1
    if settings.mode is TrtllmMode.INNER and not wants_inner:
        raise ConfigError(f"trtllm.mode: inner needs one rank, llm_args ask for {settings.num_ranks}")
    if wants_inner:
        os.environ[_SINGLE_PROCESS] = "1"
    report(f"loading {settings.model} with TensorRT-LLM {library.__version__}", None)
    try:
        llm = library.LLM(model=settings.model, **llm_arguments(settings, library, wants_inner))
    except Exception as error:
        raise ExecutorError(f"TensorRT-LLM {library.__version__} cannot load {settings.model!r}: {error}") from error
    reason = "trtllm.mode is outer" if settings.mode is TrtllmMode.OUTER else f"{settings.num_ranks} ranks"
    if wants_inner:
        try:
            return _inner_engine(settings, scheduler_settings, emit, clock, library, llm)
        except NoInnerMode as error:
            reason = str(error)
            if settings.mode is TrtllmMode.INNER:
                llm.shutdown()
                raise ConfigError(f"trtllm.mode: inner is not possible: {reason}") from error
    logger.warning("TensorRT-LLM %s in outer mode, admission only: %s", library.__version__, reason)
    return _outer_engine(settings, scheduler_settings, emit, clock, library, llm)


def llm_arguments(settings: TrtllmSettings, library: Library, is_inner: bool) -> dict[str, object]:
    """Return the arguments of `LLM`: the defaults that our scheduling needs, overridden by the operator's."""
    defaults: dict[str, object] = {"enable_chunked_prefill": True}
    scheduler_config: dict[str, object] = {}
    if takes_priority(library.LLM):  # the same version brought request priorities and this queue policy
        scheduler_config["waiting_queue_policy"] = "priority"
    if not is_inner:
        defaults["enable_iter_perf_stats"] = True  # tells the size of the KV pool
    if is_inner:  # V1 pauses requests under no other policy, and V2 has no other
        scheduler_config["capacity_scheduler_policy"] = "MAX_UTILIZATION"
    if scheduler_config:
        defaults["scheduler_config"] = _scheduler_config(library, scheduler_config)
    return {**defaults, **settings.llm_args}


def _library() -> Library:
    try:
        return cast(Library, importlib.import_module("tensorrt_llm"))
    except ImportError as error:
        raise ConfigError(f"executor: trtllm needs TensorRT-LLM, which cannot be imported: {error}") from error


def _scheduler_config(library: Library, arguments: Mapping[str, object]) -> object:
    llmapi = importlib.import_module(f"{cast(Any, library).__name__}.llmapi")
    names = dict(arguments)
    if "capacity_scheduler_policy" in names:
        names["capacity_scheduler_policy"] = llmapi.CapacitySchedulerPolicy[str(names["capacity_scheduler_policy"])]
    return llmapi.SchedulerConfig(**names)


def _inner_engine(
    settings: TrtllmSettings,
    scheduler_settings: SchedulerSettings,
    emit: Emit,
    clock: Clock,
    library: Library,
    llm: Llm,
) -> TrtllmEngine:
    executor: PyExecutor | None = getattr(llm._executor, "engine", None)
    if executor is None:
        raise NoInnerMode("the executor does not run in this process")
    if missing := [name for name in _EXECUTOR_ATTRIBUTES if not hasattr(executor, name)]:
        raise NoInnerMode(f"the step loop of this version has no {missing[0]}")
    manager = _manager(executor, settings)
    tickets = Tickets()
    max_seq_len = int(executor.kv_cache_manager.max_seq_len)
    scheduler = BrosRequestScheduler(
        inner=executor.scheduler,
        manager=manager,
        tickets=tickets,
        settings=scheduler_settings,
        clock=clock,
        max_seq_len=max_seq_len,
        has_overlap=not getattr(executor, "disable_overlap_scheduler", False),
    )
    executor.scheduler = scheduler
    size = manager.pool_size()
    gate = Gate(
        GateLimits(
            max_inside=executor.max_num_active_requests,
            reserved_rt_seqs=settings.reserved_rt_seqs,
            max_waiting_rt=scheduler_settings.max_waiting_rt,
            max_waiting_be=scheduler_settings.max_waiting_be,
            max_waiting_bytes=scheduler_settings.max_waiting_bytes,
            max_seq_len=max_seq_len,
            block_size=size.block_size,
            num_blocks=size.num_blocks,
            refuse_late_rt=scheduler_settings.refuse_hopeless_rt,
        )
    )
    logger.info(
        "TensorRT-LLM %s in inner mode: policy %s, %s, %d KV blocks of %d tokens, preempted KV is %s",
        library.__version__,
        scheduler_settings.policy,
        type(manager).__name__,
        size.num_blocks,
        size.block_size,
        "kept" if manager.keeps_kv else "computed again",
    )
    runtime = Runtime(llm, library.SamplingParams, tickets)
    return TrtllmEngine(gate, runtime, scheduler, clock, emit)


def _manager(executor: PyExecutor, settings: TrtllmSettings) -> ManagerAdapter:
    """Return the adapter of the executor's KV manager. Raises NoInnerMode when that cannot follow a plan."""
    inner, kv = executor.scheduler, executor.kv_cache_manager
    if hasattr(inner, "micro_batch_scheduler") and hasattr(kv, "get_kv_cache_stats"):
        if not hasattr(cast(Any, inner).capacity_scheduler, "impl"):
            raise NoInnerMode("V1's Python scheduler chooses victims its own way: leave use_python_scheduler off")
        return ManagerV1(inner, kv)
    knows_who_is_resident = hasattr(kv, "suspend_request") and hasattr(kv, "is_request_active")
    if not knows_who_is_resident or not hasattr(inner, "max_num_requests"):
        raise NoInnerMode(f"{type(inner).__name__} with {type(kv).__name__} is not known here")
    if not can_evict(inner, kv):
        raise NoInnerMode("this version can preempt only into a cache tier: set kv_cache_config.host_cache_size")
    return ManagerV2(inner, kv, _kv_cache_setting(settings, "max_util_for_resume", _MAX_UTIL_FOR_RESUME))


def _outer_engine(
    settings: TrtllmSettings,
    scheduler_settings: SchedulerSettings,
    emit: Emit,
    clock: Clock,
    library: Library,
    llm: Llm,
) -> TrtllmEngine:
    gate = Gate(outer_limits(settings, scheduler_settings))
    runtime = Runtime(llm, library.SamplingParams, Tickets())
    return TrtllmEngine(gate, runtime, GateAccounts(gate, runtime, settings.be_kv_ratio), clock, emit)


def outer_limits(settings: TrtllmSettings, scheduler_settings: SchedulerSettings) -> GateLimits:
    """Return the gate's limits from TensorRT-LLM's arguments and their defaults: outer mode cannot read its state.

    Without `kv_cache_config.max_tokens`, TensorRT-LLM reports the pool's size with the first answers. Until then
    best-effort requests run one at a time.
    """
    max_inside = _int_argument(settings.llm_args, "max_batch_size", _DEFAULT_MAX_BATCH_SIZE)
    max_seq_len = _int_argument(settings.llm_args, "max_seq_len", _DEFAULT_MAX_SEQ_LEN)
    block_size = int(_kv_cache_setting(settings, "tokens_per_block", _DEFAULT_TOKENS_PER_BLOCK))
    num_tokens = int(_kv_cache_setting(settings, "max_tokens", 0))
    return GateLimits(
        max_inside=max_inside,
        reserved_rt_seqs=settings.reserved_rt_seqs,
        max_waiting_rt=scheduler_settings.max_waiting_rt,
        max_waiting_be=scheduler_settings.max_waiting_be,
        max_waiting_bytes=scheduler_settings.max_waiting_bytes,
        max_seq_len=max_seq_len,
        block_size=block_size,
        num_blocks=(num_tokens or max_inside * max_seq_len) // block_size,
        max_be_blocks=int(settings.be_kv_ratio * (num_tokens // block_size)),
        refuse_late_rt=scheduler_settings.refuse_hopeless_rt,
    )


def _kv_cache_setting(settings: TrtllmSettings, name: str, default: float) -> float:
    config = settings.llm_args.get("kv_cache_config")
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return default if value is None else float(value)


def _int_argument(arguments: Mapping[str, object], name: str, default: int) -> int:
    value = arguments.get(name)
    return value if isinstance(value, int) else default
