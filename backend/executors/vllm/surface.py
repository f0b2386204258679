"""The parts of vLLM that this adapter touches, as protocols, and how their absence is found at start.

Read in vLLM 0.32 (docs/vllm.md lists the runs). vLLM's scheduler is no public interface. So the adapter looks for
each name before the first request, and refuses a version without it by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from backend.core.errors import ConfigError


class VllmRequest(Protocol):
    """A request inside vLLM's scheduler."""

    request_id: str
    num_computed_tokens: int  # counts steps in flight; 0 after a preemption

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens that are known."""
        ...


class RequestQueue(Protocol):
    """vLLM's queue of waiting requests."""

    def prepend_request(self, request: Any) -> None: ...
    def remove_request(self, request: Any) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __contains__(self, request: object) -> bool: ...
    def __len__(self) -> int: ...


class VllmScheduler(Protocol):
    """vLLM's scheduler, of which ours is a subclass."""

    requests: dict[str, Any]
    running: list[Any]
    waiting: Any
    kv_holding_waiting: Any
    max_num_active_reqs: int
    max_num_running_reqs: int
    max_num_scheduled_tokens: int
    max_model_len: int
    block_size: int
    kv_cache_manager: Any
    kv_cache_config: Any
    connector: Any
    vllm_config: Any
    scheduler_config: Any

    def _preempt_request(self, request: Any, timestamp: float) -> None: ...
    def _request_blocks_can_be_freed(self, request: Any) -> bool: ...
    def bind_caps(self, do_bind: bool) -> None:
        """Let `Steering.cap` bind, or not (ours, as the next)."""
        ...

    def fall_back(self) -> None:
        """Let vLLM schedule by class and arrival from here on (ours, see `scheduler.py`)."""
        ...


class SchedulerOutput(Protocol):
    """What vLLM's `schedule` returns."""

    num_scheduled_tokens: Mapping[str, int]


class CompletionOutput(Protocol):
    """What came of one answer since the last step."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Any]] | None
    finish_reason: str | None


class RequestOutput(Protocol):
    """What came of a request in a step."""

    request_id: str
    outputs: Sequence[CompletionOutput]
    finished: bool


class LlmEngine(Protocol):
    """`vllm.v1.engine.llm_engine.LLMEngine`, with its core in our process."""

    def add_request(self, request_id: str, prompt: Any, params: Any, *, priority: int) -> str: ...
    def abort_request(self, request_ids: list[str]) -> None: ...
    def step(self) -> Sequence[Any]: ...
    def reset_prefix_cache(self) -> Any: ...


_ATTRIBUTES = (
    "requests",
    "running",
    "waiting",
    "kv_holding_waiting",
    "max_num_active_reqs",
    "max_num_running_reqs",
    "max_num_scheduled_tokens",
    "max_model_len",
    "block_size",
    "kv_cache_manager",
    "kv_cache_config",
    "connector",
    "vllm_config",
    "scheduler_config",
)
_METHODS: Mapping[str, Sequence[str]] = {
    "schedule": ("throttle_prefills",),
    "add_request": ("request",),
    "_free_request": ("request",),
    "_preempt_request": ("request", "timestamp"),
    "_request_blocks_can_be_freed": ("request",),
    "_reserve_prefill_lookahead": ("request", "num_computed_tokens", "num_new_tokens"),
}
_NUM_LIMITED = 2  # calls in `schedule` that ask how many tokens a request gets: of running ones, of waiting ones


def require_known(scheduler: Any, base: type[Any], version: str) -> None:
    """Raise ConfigError where this vLLM lacks what the adapter relies on; the message names it."""
    missing = [*_missing_attributes(scheduler), *_missing_methods(base)]
    if not missing and (num := _num_limited(base.schedule)) != _NUM_LIMITED:
        missing = [f"schedule() that limits each request's tokens ({num} of {_NUM_LIMITED} calls found)"]
    if missing:
        raise ConfigError(f"vLLM {version}: its scheduler has no {'; no '.join(missing)}; vLLM 0.32 is known to work")
    if len(scheduler.kv_cache_config.kv_cache_groups) != 1:
        raise ConfigError(
            f"vLLM {version}: {len(scheduler.kv_cache_config.kv_cache_groups)} KV cache groups, 1 is supported; set "
            'vllm.engine_args={"disable_hybrid_kv_cache_manager": true}'
        )


def _missing_attributes(scheduler: Any) -> Iterable[str]:
    yield from (name for name in _ATTRIBUTES if not hasattr(scheduler, name))
    manager = getattr(scheduler, "kv_cache_manager", None)
    if not hasattr(manager, "get_computed_blocks"):
        yield "kv_cache_manager.get_computed_blocks"
    if not hasattr(getattr(manager, "block_pool", None), "get_num_free_blocks"):
        yield "kv_cache_manager.block_pool.get_num_free_blocks"


def _missing_methods(base: type[Any]) -> Iterable[str]:
    for name, parameters in _METHODS.items():
        method = getattr(base, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)
        if not set(parameters) <= set(found):
            yield f"{name}({', '.join(parameters)})"


def _num_limited(schedule: Callable[..., Any]) -> int:
    return inspect.getsource(schedule).count("self._reserve_prefill_lookahead(")
