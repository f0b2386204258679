"""A step as TensorRT-LLM is asked for it, and the face of its two KV managers that turns it into their own terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from backend.executors.foreign.source import PoolSize
from backend.executors.trtllm.surface import LlmRequest, SchedulerOutput


@dataclass(frozen=True, slots=True)
class Share:
    """What one request gets of a step: `num_tokens` new ones, the last of its known tokens if `reaches_end`."""

    request: LlmRequest
    num_tokens: int
    reaches_end: bool
    is_rt: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """One step, decided.

    passed_on: requests that are not ours, or not schedulable now; TensorRT-LLM's scheduler must see them all the same.
    shares: who runs, in the order in which KV blocks are taken. victims: who gives its KV blocks up, the first one
    first. withheld: started requests that hold blocks and neither run nor lose them; the first to lose them first.
    """

    passed_on: Sequence[LlmRequest]
    shares: Sequence[Share]
    victims: Sequence[LlmRequest]
    withheld: Sequence[LlmRequest]

    def num_tokens(self, chunk_unit: int) -> int:
        """Return the token budget of the step. A chunk that does not end its prompt counts in whole `chunk_unit`s, at
        least one, because TensorRT-LLM rounds such chunks down."""
        return len(self.passed_on) + sum(_in_units(share, chunk_unit) for share in self.shares)

    @property
    def num_seqs(self) -> int:
        """Return the places of the step."""
        return len(self.passed_on) + len(self.shares)


class ManagerAdapter(Protocol):
    """A generation of TensorRT-LLM's KV manager together with the scheduler that goes with it."""

    keeps_kv: bool  # a victim's KV survives in the tier below the GPU
    has_chunked_prefill: bool

    def pool_size(self) -> PoolSize: ...

    def max_step(self) -> tuple[int, int]:
        """Return the tokens and the requests that a step may hold."""
        ...

    def num_free_blocks(self) -> int:
        """Return the GPU blocks that could be had now, of those `pool_size` counts."""
        ...

    def num_reserved_blocks(self, request: LlmRequest, /) -> int:
        """Return the blocks that `request` holds beyond what it has computed."""
        ...

    def is_resident(self, request: LlmRequest, /) -> bool:
        """Return whether the KV of `request` is on the GPU, as far as it has been computed."""
        ...

    def answer(self, decision: Decision, inflight_request_ids: set[int]) -> SchedulerOutput:
        """Let TensorRT-LLM's own scheduler schedule the decision, and return its output."""
        ...

    def release(self) -> None:
        """Give TensorRT-LLM's scheduler its own limits back."""
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
