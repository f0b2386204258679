"""A committed step on its way: what the scheduler keeps of it until its result comes, and what the result says."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import compress
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
        has_token = [token_id is not None for token_id in token_ids]
        return Sampled(
            list(compress(requests, has_token)),
            step.slots.rows[np.array(has_token)],
            [token_id for token_id in token_ids if token_id is not None],
            list(compress(log_probs, has_token)),
            [request for request, is_sampled in zip(requests, has_token, strict=True) if not is_sampled],
            distinct_ids,
        )

    def emitted(self) -> list[EmittedToken]:
        """Return the tokens as the clients get them."""
        return list(zip(self.requests, self.token_ids, self.log_probs, strict=True))
