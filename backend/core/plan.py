"""The values that travel around one step: plan, batch, result, output.

    policy.plan ──StepPlan──► scheduler.commit ──StepBatch──► executor.execute
                                                                      │ StepResult
                                 engine ◄──StepOutput── scheduler.complete ◄

The step of a request is a number of new tokens; `start = num_computed` before it. The request that computes its last
known token samples one more.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from backend.core.errors import BrosError
from backend.core.request import Grammar, Request, RequestId, SamplingParams
from kv.types import NO_COPIES, SlotCopy

if TYPE_CHECKING:  # the stubs read this module and need no compiled loops
    from kv.budget import KVBudget


class PreemptionKind(enum.Enum):
    """What becomes of the KV that a preempted request lost: kept in the host pool, or computed again."""

    CHECKPOINT = "checkpoint"
    RECOMPUTE = "recompute"


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Take KV slots from the end of `request`, which keeps its first `num_kept` positions.

    `checkpoint`: first copy the lost positions to the host pool, as far as it has room. Otherwise they are recomputed.
    """

    request: Request
    num_kept: int
    checkpoint: bool


@dataclass(frozen=True, slots=True)
class Restore:
    """Bring `num_tokens` positions of a preempted request back from the host pool, before its new tokens run.

    Those of a request that begins are a prefix that others left there.
    """

    request: Request
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class PlannedSlots:
    """Where a plan's requests find their KV slots: on the budget it was tried on, which `commit` adopts as it is.

    rows, counts: int64, rows and new tokens of the requests, in the plan's order. newcomers: those of them that get a
    row, in the budget's order.
    """

    budget: KVBudget
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    newcomers: Sequence[Request]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A decision about one step: how many new tokens of which requests. Nothing has moved yet.

    `predicted_s` is the latency model's step time and `budget_s` the bound the policy packed under (infinite when
    nothing binds). `slots` is None where nothing is to run.
    """

    requests: Sequence[Request] = ()
    counts: Sequence[int] = ()  # new tokens of each of them
    reclaims: Sequence[Reclaim] = ()
    restores: Sequence[Restore] = ()
    predicted_s: float = 0.0
    budget_s: float = float("inf")
    slots: PlannedSlots | None = field(default=None, compare=False, repr=False)

    @property
    def num_new_tokens(self) -> Mapping[Request, int]:
        """The new tokens by request, in the plan's order. Made anew at each call."""
        return dict(zip(self.requests, self.counts, strict=True))

    @property
    def is_empty(self) -> bool:
        return not self.requests and not self.restores and not self.reclaims


class Sequenced(Protocol):
    """What an executor may read of a request; `backend.core.request.Request` satisfies it. Never to be mutated."""

    @property
    def request_id(self) -> RequestId: ...
    @property
    def row(self) -> int | None: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def num_computed(self) -> int: ...
    @property
    def num_prompt(self) -> int: ...
    @property
    def sampling(self) -> SamplingParams: ...
    @property
    def cache_salt(self) -> str: ...
    @property
    def grammar(self) -> Grammar | None: ...


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step for an executor.

    Sequence i computes `token_ids[start : start + num_new_tokens[i]]` with `start = num_computed`, writes position p's
    K and V to slot `slot_table[row, p]`, and attends over positions [0, p]. It samples when that reaches the end of
    `token_ids`. Order within the step: `copies_out` (device to host), `copies_in` (host to device), then compute.

    slot_table: int32 [num_rows, max_seq_len], owned by the KV manager; read it during `execute` only.
    """

    sequences: Sequence[Sequenced]
    num_new_tokens: Sequence[int]
    slot_table: NDArray[np.int32]
    copies_out: SlotCopy = NO_COPIES
    copies_in: SlotCopy = NO_COPIES


class RankedLogProb(float):
    """A token's log-probability, with those of the likeliest tokens at its position: `top`, likeliest first."""

    __slots__ = ("top",)
    top: Sequence[tuple[int, float]]

    def __new__(cls, log_prob: float, top: Sequence[tuple[int, float]]) -> RankedLogProb:
        made = super().__new__(cls, log_prob)
        made.top = top
        return made


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step yielded: `token_ids[i]` is sequence i's sampled token, None where it did not reach its last known
    token. `log_probs` is None unless some sequence wanted them; ranked ones where it wanted others beside its own.
    `duration_s` is the time the step took. `errors`: by index, why a sequence that was to sample cannot go on; it has
    no token."""

    token_ids: Sequence[int | None]
    duration_s: float
    log_probs: Sequence[float | None] | None = None
    errors: Mapping[int, BrosError] = field(default_factory=dict)


# A token to send to the client of a request: the request, the token's id, its log probability where one was wanted. A
# plain tuple, because a step makes hundreds of them.
EmittedToken: TypeAlias = tuple[Request, int, float | None]


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request that ends without (more) tokens, and why."""

    request: Request
    error: BrosError


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the clients get after a step: tokens first, then ends. Every finished request appears exactly once, in
    `finished` (its `finish_reason` is set) or in `failed`."""

    tokens: Iterable[EmittedToken] = ()  # may be read more than once
    finished: Sequence[Request] = ()
    failed: Sequence[FailedRequest] = ()
