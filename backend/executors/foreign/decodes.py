"""Steps of decodes alone: nearly all steps of another engine. Each follows from the one before by little work.

A model's step puts our code and state out of the processor's caches. So a step costs what it touches.
"""

# an element of an array is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from backend.core.plan import StepPlan
from backend.policy.state.latency_model import StepFeatures
from backend.policy.state.request_table import RequestTable
from backend.policy.state.table_loops import (
    DEADLINE,
    IS_PREEMPTED,
    IS_RT,
    NUM_COMPUTED,
    NUM_KNOWN,
    Counts,
    Flags,
    Rows,
    Times,
)
from kv.compiled import compiled


class Decodes(NamedTuple):
    """A step of one token of each of `rows`, none of which lost KV; `rt_rows` are real-time. num_deadlines: those of
    best-effort requests. is_again: the step before was the same, and all find room."""

    plan: StepPlan
    rows: Rows
    rt_rows: Rows
    num_deadlines: int
    features: StepFeatures
    is_again: bool = False

    def next_features(self) -> StepFeatures:
        """Return the features of the same step, one token on."""
        return StepFeatures(len(self.rows), self.features.context_tokens + len(self.rows))

    def again(self, features: StepFeatures, predicted_s: float, budget_s: float) -> Decodes:
        """Return the same step, one token on."""
        plan = StepPlan(self.plan.requests, self.plan.counts, (), (), predicted_s, budget_s, self.plan.slots)
        return Decodes(plan, self.rows, self.rt_rows, self.num_deadlines, features, is_again=True)


def decodes_of(plan: StepPlan, table: RequestTable, all_rows: Rows) -> Decodes | None:
    """Return `plan` as a step of decodes; None where it has more. A step of `all_rows` gets that very array."""
    if plan.slots is None or plan.slots.newcomers or plan.reclaims or plan.restores:
        return None
    rows = all_rows if len(plan.slots.rows) == len(all_rows) else plan.slots.rows
    num_decodes, num_computed, num_deadlines, rt_rows = decode_sums(table.counts, table.times, table.flags, rows)
    if num_decodes < len(rows):
        return None
    return Decodes(plan, rows, rt_rows, num_deadlines, StepFeatures(len(rows), num_computed))


@compiled("Tuple((int64, int64, int64, int64[::1]))(int64[:,::1], float64[:,::1], boolean[:,::1], int64[::1])")
def decode_sums(counts: Counts, times: Times, flags: Flags, rows: Rows) -> tuple[int, int, int, Rows]:
    """Return of `rows` how many are decodes that lost no KV, their computed tokens, how many best-effort ones have a
    deadline, and which are real-time."""
    rt_rows = np.empty(len(rows), np.int64)
    num_decodes, num_computed, num_deadlines, num_rt = 0, 0, 0, 0
    for index in range(len(rows)):
        row = rows[index]
        is_decode = counts[NUM_KNOWN, row] - counts[NUM_COMPUTED, row] == 1
        num_decodes += is_decode and not flags[IS_PREEMPTED, row]
        num_computed += counts[NUM_COMPUTED, row]
        if flags[IS_RT, row]:
            rt_rows[num_rt] = row
            num_rt += 1
        elif times[DEADLINE, row] < np.inf:
            num_deadlines += 1
    return num_decodes, num_computed, num_deadlines, rt_rows[:num_rt]
