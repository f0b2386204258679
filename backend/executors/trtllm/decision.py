"""A step decided for TensorRT-LLM, and the interface of the adapters that hand it to its two KV managers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from backend.executors.foreign.source import PoolSize
from backend.executors.trtllm.surface import LlmRequest, SchedulerOutput


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a step for one request: `num_tokens` new tokens, up to its last known one if `reaches_end`."""

    request: LlmRequest
    num_tokens: int
    reaches_end: bool
    is_rt: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """One step, decided.

    passed_on    requests that are not ours or not schedulable now; TensorRT-LLM's scheduler must still see them
    shares       requests that run, in the order in which they take KV blocks
    victims      requests that give up their KV blocks, in this order
    withheld     started requests that hold blocks and do not run; where blocks are short they lose them in this order
    """

    passed_on: Sequence[LlmRequest]
    shares: Sequence[Share]
    victims: Sequence[LlmRequest]
    withheld: Sequence[LlmRequest]

    def num_tokens(self, chunk_unit: int) -> int:
        """Return the token budget of the step.

        A chunk that does not end its prompt counts as whole `chunk_unit`s, at least one: TensorRT-LLM rounds it down.
        """
        return len(self.passed_on) + sum(_in_units(share, chunk_unit) for share in self.shares)

    @property
    def num_seqs(self) -> int:
        """Return the batch slots of the step."""
        return len(self.passed_on) + len(self.shares)


class ManagerAdapter(Protocol):
    """A generation of TensorRT-LLM's KV manager together with the scheduler that goes with it."""

    keeps_kv: bool  # a victim's KV survives in the tier below the GPU
    has_chunked_prefill: bool

    def pool_size(self) -> PoolSize: ...

    def max_step(self) -> tuple[int, int]:
        """Return the limits of a step: (tokens, requests)."""
        ...

    def num_free_blocks(self) -> int:
        """Return how many of the GPU blocks of `pool_size` are available now."""
        ...

    def num_reserved_blocks(self, request: LlmRequest, /) -> int:
        """Return the blocks that `request` holds beyond what it has computed."""
        ...

    def is_resident(self, request: LlmRequest, /) -> bool:
        """Return whether the computed KV of `request` is on the GPU."""
        ...

    def answer(self, decision: Decision, inflight_request_ids: set[int]) -> SchedulerOutput:
        """Let TensorRT-LLM's own scheduler schedule the decision, and return its output."""
        ...

    def release(self) -> None:
        """Restore the limits of TensorRT-LLM's scheduler."""
        ...


def is_started(request: LlmRequest) -> bool:
    """Return whether `request` has begun to run, so that it can be paused or suspended."""
    if getattr(request, "is_generation_to_complete_state", False):
        return False  # its last step is in flight
    if request.is_generation_in_progress_state:
        return True
    return request.is_context_init_state and not request.is_first_context_chunk


def is_schedulable(request: LlmRequest) -> bool:
    """Return whether `request` could run in a step now."""
    if getattr(request, "is_generation_to_complete_state", False):
        return False
    return request.is_context_init_state or request.is_generation_in_progress_state


def _in_units(share: Share, chunk_unit: int) -> int:
    if share.reaches_end:
        return share.num_tokens
    return max(1, round(share.num_tokens / chunk_unit)) * chunk_unit
