"""A committed step on its way: what the scheduler keeps of it until its result comes, and what the result says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from backend.plan import EmittedToken, PlannedSlots, StepBatch, StepPlan, StepResult
from backend.policy.latency import StepFeatures
from backend.policy.table import Rows
from backend.request import Request


@dataclass(frozen=True, slots=True, eq=False)
class CommittedStep:
    """A committed step that waits for its result."""

    batch: StepBatch
    requests: list[Request]
    slots: PlannedSlots
    features: StepFeatures
    plan: StepPlan
    checkpointed: list[Request]  # whose KV this step copies out


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The sequences of a step that sampled a token, in the batch's order."""

    requests: list[Request]
    rows: Rows
    token_ids: list[int]
    log_probs: Sequence[float | None]

    @staticmethod
    def of(step: CommittedStep, result: StepResult) -> Sampled:
        """Select from a step what its result has a token for."""
        log_probs = result.log_probs if result.log_probs is not None else [None] * len(step.requests)
        if None not in result.token_ids:
            return Sampled(step.requests, step.slots.rows, cast(list[int], result.token_ids), log_probs)
        indices = [index for index, token_id in enumerate(result.token_ids) if token_id is not None]
        return Sampled(
            [step.requests[index] for index in indices],
            step.slots.rows[indices],
            [token_id for token_id in result.token_ids if token_id is not None],
            [log_probs[index] for index in indices],
        )

    def emitted(self) -> list[EmittedToken]:
        """Return the tokens as the clients get them."""
        triples = zip(self.requests, self.token_ids, self.log_probs, strict=True)
        return list(map(_make_emitted, triples))


# EmittedToken._make without its Python frame, a quarter of the time.
_make_emitted: Callable[[tuple[Request, int, float | None]], EmittedToken] = partial(tuple.__new__, EmittedToken)
