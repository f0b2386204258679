"""Makes vLLM's engine with its core in this process, checks that this version is one we know, and steers it."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from backend.core.clock import Clock
from backend.core.errors import BrosError, ConfigError, ExecutorError
from backend.engine.engine import Emit
from backend.executors.foreign.source import Ticket
from backend.executors.vllm.engine import VllmEngine
from backend.executors.vllm.model import model_directory
from backend.executors.vllm.runtime import VllmRuntime
from backend.executors.vllm.seeds import hide_generators_of_unfinished
from backend.executors.vllm.settings import VllmSettings
from backend.executors.vllm.steering import Steering
from backend.executors.vllm.surface import require_known
from backend.executors.vllm.trial import Room, trial_coefficients, warm_up
from backend.policy.settings import SchedulerSettings
from backend.policy.state.latency_model import LatencyModel

logger = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]  # the stage, and the fraction done where it is known

SCHEDULER = "backend.executors.vllm.scheduler.BrosScheduler"
_CPU_KV_BYTES = 2 << 30  # where nothing is said: vLLM would plan for nearly all of the machine's memory
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the core, and our scheduler in it, in this process
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """vLLM, loaded and steered."""

    engine: VllmEngine
    vocab_size: int
    facts: str
    latency: LatencyModel
    follows_schemas: bool  # it does where it has a tokenizer


def load_engine(
    settings: VllmSettings,
    scheduler_settings: SchedulerSettings,
    eos_token_ids: Collection[int],
    emit: Emit,
    clock: Clock,
    report: Progress = lambda *_: None,
) -> Loaded:
    """Load the model and return an engine that serves it. Raises ConfigError, or ExecutorError from vLLM."""
    os.environ.update(_ENVIRONMENT)
    report("importing vLLM", None)
    vllm = _import("vllm")
    version = str(getattr(vllm, "__version__", "of unknown version"))
    directory = model_directory(settings, report)
    report(f"loading {directory} with vLLM {version}", None)
    arguments = engine_arguments(settings)
    if arguments.get("enforce_eager") and _import("vllm.platforms").current_platform.is_cpu():
        _compile_nothing()
    llm = _make_engine(version, {"model": str(directory), **arguments})
    if _import("vllm.platforms").current_platform.is_cpu():
        llm.collective_rpc(hide_generators_of_unfinished)
    scheduler = llm.engine_core.engine_core.scheduler
    require_known(scheduler, _base(), version)
    tickets: dict[str, Ticket] = {}
    runtime = VllmRuntime(llm, _make_params, tickets, eos_token_ids)
    vocab_size = int(llm.model_config.get_vocab_size())
    report("measuring steps", None)
    scheduler_settings = _measured(runtime, scheduler, vocab_size, scheduler_settings, clock)
    steering = scheduler.steering = Steering(scheduler, tickets, scheduler_settings, clock)
    facts = _facts(version, scheduler, steering, scheduler_settings.policy)
    logger.info("%s", facts)
    return Loaded(
        VllmEngine(runtime, steering, clock, emit),
        vocab_size,
        facts,
        steering.pilot.view.latency,
        follows_schemas=not llm.model_config.skip_tokenizer_init,
    )


def _measured(
    runtime: VllmRuntime, scheduler: Any, vocab_size: int, settings: SchedulerSettings, clock: Clock
) -> SchedulerSettings:
    """Warm vLLM up; return the settings with what trial steps cost here, unless they say it themselves."""
    room = Room(
        max_tokens=scheduler.max_num_scheduled_tokens,
        max_seqs=scheduler.max_num_running_reqs,
        max_seq_len=scheduler.max_model_len,
        num_slots=(scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1) * scheduler.block_size,
        block_size=scheduler.block_size,
    )
    try:
        warm_up(runtime, room, vocab_size)
        if settings.latency_coefficients is not None:
            return settings
        measured = trial_coefficients(runtime, room, vocab_size, clock)
    except Exception as error:
        raise ExecutorError(f"vLLM cannot run a step: {error}") from error
    return settings if measured is None else replace(settings, latency_coefficients=measured)


def engine_arguments(settings: VllmSettings) -> dict[str, Any]:
    """Return the arguments of `EngineArgs`: the operator's, over our defaults."""
    arguments: dict[str, Any] = {
        "scheduler_cls": SCHEDULER,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # each request says all it wants
        "disable_log_stats": True,
        "scheduler_reserve_full_isl": False,  # our policy counts the KV of a prompt chunk by chunk
    }
    platform = _import("vllm.platforms").current_platform
    if platform.is_cpu():
        arguments |= _on_cpu(settings)
    return {**arguments, **settings.engine_args}


def _on_cpu(settings: VllmSettings) -> dict[str, Any]:
    """bf16 is slow without its own instructions; compiling takes minutes, at each start."""
    torch = _import("torch")
    arguments: dict[str, Any] = {"enforce_eager": True}
    if not torch.cpu._is_avx512_bf16_supported():
        arguments["dtype"] = "float32"
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ and "gpu_memory_utilization" not in settings.engine_args:
        arguments["kv_cache_memory_bytes"] = _CPU_KV_BYTES
    return arguments


def _compile_nothing() -> None:
    """Keep PyTorch from compiling the few functions that vLLM leaves to it even where it is eager.

    A step would wait for that for up to 17 s, and fail where no C++ compiler is found.
    """
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # in the processes of other ranks
    _import("torch._dynamo.config").disable = True


def _make_engine(version: str, arguments: dict[str, Any]) -> Any:
    _mend_kernel_scan()
    args = _import("vllm.engine.arg_utils").EngineArgs
    engine = _import("vllm.v1.engine.llm_engine").LLMEngine
    try:
        return engine.from_engine_args(args(**arguments))
    except BrosError:
        raise
    except TypeError as error:
        raise ConfigError(f"vllm.engine_args: vLLM {version} does not take them: {error}") from error
    except Exception as error:
        raise ExecutorError(f"vLLM {version} cannot load {arguments['model']!r}: {error}") from error


def _mend_kernel_scan() -> None:
    """Let vLLM's search for kernels on the CPU pass an object of llvmlite, which compiles our KV counts. It answers
    `vars` with something else than a dictionary (seen in vLLM 0.32)."""
    module = _import("vllm.triton_utils.dispatcher")
    module.vars = lambda value: found if isinstance(found := value.__dict__, Mapping) else {}


def _make_params(arguments: dict[str, Any]) -> Any:
    module = _import("vllm.sampling_params")
    if (structured := arguments.get("structured_outputs")) is not None:
        arguments = arguments | {"structured_outputs": module.StructuredOutputsParams(**structured)}
    return module.SamplingParams(**arguments, output_kind=module.RequestOutputKind.DELTA)


def _base() -> type[Any]:
    base: type[Any] = _import("vllm.v1.core.sched.scheduler").Scheduler
    return base


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"executor: vllm needs vLLM, which this Python cannot import: {error}; name one that can in vllm.python"
        ) from error


def _facts(version: str, scheduler: Any, steering: Steering, policy: str) -> str:
    limits = steering.pilot.view.limits
    config = scheduler.vllm_config
    return (
        f"vLLM {version} on {config.device_config.device_type}, {config.model_config.dtype}, "
        f"{config.parallel_config.world_size} rank(s): policy {policy}, {limits.num_slots // limits.block_size} KV "
        f"blocks of {limits.block_size} tokens, {limits.max_tokens} tokens a step, prefix caching "
        f"{'on' if config.cache_config.enable_prefix_caching else 'off'}"
    )
