"""A committed step on its way: what the scheduler keeps of it until its result comes, and what the result says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import cast

import numpy as np

from backend.core.plan import EmittedToken, PlannedSlots, StepBatch, StepPlan, StepResult
from backend.core.request import Request
from backend.policy.state.latency_model import StepFeatures
from backend.policy.state.table_loops import Rows


@dataclass(frozen=True, slots=True, eq=False)
class CommittedStep:
    """A committed step that waits for its result."""

    batch: StepBatch
    requests: list[Request]
    slots: PlannedSlots
    features: StepFeatures
    num_rt_tokens: int
    plan: StepPlan
    checkpointed: list[Request]  # whose KV this step copies out


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The sequences of a step that sampled a token, in the batch's order, and the requests that did not.

    distinct_ids: the values in `token_ids`, and None for a request that did not sample.
    """

    requests: list[Request]
    rows: Rows
    token_ids: list[int]
    log_probs: Sequence[float | None]
    others: list[Request]
    distinct_ids: Set[int | None]

    @staticmethod
    def of(step: CommittedStep, result: StepResult) -> Sampled:
        """Select from a step what its result has a token for."""
        requests, token_ids = step.requests, result.token_ids
        log_probs = result.log_probs if result.log_probs is not None else [None] * len(requests)
        distinct_ids = set(token_ids)
        if None not in distinct_ids:
            return Sampled(requests, step.slots.rows, cast(list[int], token_ids), log_probs, [], distinct_ids)
        others = [index for index, token_id in enumerate(token_ids) if token_id is None]
        has_token = np.ones(len(requests), bool)
        has_token[others] = False
        sampled, ids, log_probs = list(requests), list(token_ids), list(log_probs)
        for index in reversed(others):  # few: prompts that take another step
            del sampled[index], ids[index], log_probs[index]
        rows = step.slots.rows[has_token]
        return Sampled(
            sampled, rows, cast(list[int], ids), log_probs, [requests[index] for index in others], distinct_ids
        )

    def __iter__(self) -> Iterator[EmittedToken]:
        """Yield the tokens as the clients get them. A list of hundreds of tuples would cost more than the loop does."""
        return zip(self.requests, self.token_ids, self.log_probs, strict=True)
