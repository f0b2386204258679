"""The loops over the columns of a request table, compiled (kv/compiled.py), since a step makes dozens of them.

    counts   int64 [8, rows]     NUM_KNOWN … NUM_BORROWED
    times    float64 [5, rows]   DEADLINE … ITL_SLO, seconds
    flags    bool [3, rows]      IS_ACTIVE, IS_RT, IS_PREEMPTED

What they mean stands at `request_table.RequestTable`, whose attributes are views of them. Floats are summed up
in the order of the rows.
"""

# an element of an array is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kv.compiled import compiled

Rows: TypeAlias = NDArray[np.int64]
Counts: TypeAlias = NDArray[np.int64]
Times: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

NUM_KNOWN, NUM_COMPUTED, NUM_EVER_COMPUTED, NUM_PROMPT, MAX_TOTAL, ARRIVAL_INDEX, ADMISSION_INDEX, NUM_BORROWED = range(
    8
)
DEADLINE, FIRST_TOKEN, LAST_TOKEN, TPOT_SLO, ITL_SLO = range(5)
IS_ACTIVE, IS_RT, IS_PREEMPTED = range(3)

_COUNTS, _TIMES, _FLAGS, _ROWS = "int64[:,::1]", "float64[:,::1]", "boolean[:,::1]", "int64[::1]"

# Which rows


@compiled(f"Tuple(({_COUNTS}, {_ROWS}))({_COUNTS}, {_TIMES}, {_FLAGS})")
def groups(counts: Counts, times: Times, flags: Flags) -> tuple[Counts, Rows]:
    """Return int64 [4, rows]: the rows in use, each ascending: RT decodes, RT prefills, BE decodes, BE prefills.

    The second array is int64 [10]. First come the lengths of these four. Then it counts the RT and the BE requests that
    run, and the slots of their own that each class of them could ever hold. The last two are RT's known tokens and BE's
    requests with a deadline.
    """
    num_rows = counts.shape[1]
    rows = np.empty((4, num_rows), np.int64)
    numbers = np.zeros(10, np.int64)
    for row in range(num_rows):
        if flags[IS_ACTIVE, row]:
            side = 0 if flags[IS_RT, row] else 1
            is_decode = counts[NUM_KNOWN, row] - counts[NUM_COMPUTED, row] == 1
            group = 2 * side + (0 if is_decode else 1)
            rows[group, numbers[group]] = row
            numbers[group] += 1
            if is_decode or not flags[IS_PREEMPTED, row]:
                numbers[4 + side] += 1
                numbers[6 + side] += counts[MAX_TOTAL, row] - counts[NUM_BORROWED, row]
            if side == 0:
                numbers[8] += counts[NUM_KNOWN, row]
            elif times[DEADLINE, row] < np.inf:
                numbers[9] += 1
    return rows, numbers


# In order


@compiled(f"{_ROWS}({_COUNTS}, {_ROWS}, float64[::1], float64)")
def deferrable(counts: Counts, rows: Rows, slack_s: NDArray[np.float64], least_s: float) -> Rows:
    """Return those of `rows` with a slack above `least_s`, by arrival."""
    found = rows[slack_s > least_s]
    return found[np.argsort(counts[ARRIVAL_INDEX][found])]


# Packing


@compiled(f"int64({_COUNTS}, {_ROWS})")
def context(counts: Counts, rows: Rows) -> int:
    """Return the computed tokens of `rows`."""
    total = 0
    for index in range(len(rows)):
        total += counts[NUM_COMPUTED, rows[index]]
    return total


@compiled(f"int64({_COUNTS}, {_ROWS}, float64, float64, float64, float64)")
def num_in_time(counts: Counts, rows: Rows, c1: float, c2: float, start_s: float, budget_s: float) -> int:
    """Return how many of `rows`, from the first one on, fit as decodes between `start_s` and `budget_s`. c1, c2 as in
    backend.policy.state.latency_model."""
    decodes_s = 0.0
    for index in range(len(rows)):
        decodes_s += c1 + c2 * counts[NUM_COMPUTED, rows[index]]
        if start_s + decodes_s > budget_s:
            return index
    return len(rows)


# What a step did


@compiled(f"int64({_COUNTS}, {_ROWS}, {_ROWS})")
def compute(counts: Counts, rows: Rows, num_new: Counts) -> int:
    """Count new computed tokens for each of `rows`; return how many of them had been computed before."""
    num_again = 0
    for index in range(len(rows)):
        row, num = rows[index], num_new[index]
        num_lost = counts[NUM_EVER_COMPUTED, row] - counts[NUM_COMPUTED, row]
        if num_lost > 0:
            num_again += min(num_lost, num)
        counts[NUM_COMPUTED, row] += num
    return num_again


@compiled()
def _emit_one(counts: Counts, times: Times, flags: Flags, row: int, now_s: float) -> None:
    """Count one new token of `row` at `now_s`, and set the deadline of the next one."""
    if times[FIRST_TOKEN, row] == np.inf:
        times[FIRST_TOKEN, row] = now_s
    times[LAST_TOKEN, row] = now_s
    counts[NUM_KNOWN, row] += 1
    if flags[IS_RT, row]:
        num_output = counts[NUM_KNOWN, row] - counts[NUM_PROMPT, row]
        next_s = times[FIRST_TOKEN, row] + num_output * times[TPOT_SLO, row]
        times[DEADLINE, row] = min(next_s, now_s + times[ITL_SLO, row])


@compiled(f"UniTuple({_ROWS}, 3)({_COUNTS}, {_TIMES}, {_FLAGS}, {_ROWS}, float64)")
def emit(counts: Counts, times: Times, flags: Flags, rows: Rows, now_s: float) -> tuple[Rows, Rows, Rows]:
    """Count one new token for each of `rows` at `now_s`, and set the deadlines of the next ones (design §3).

    Return indices into `rows`: of those that were preempted, that had no token yet, that are as long as they may be.
    """
    found = np.empty((3, len(rows)), np.int64)
    num_back, num_first, num_full = 0, 0, 0
    for index in range(len(rows)):
        row = rows[index]
        if flags[IS_PREEMPTED, row]:
            flags[IS_PREEMPTED, row] = False
            found[0, num_back] = index
            num_back += 1
        if times[FIRST_TOKEN, row] == np.inf:
            found[1, num_first] = index
            num_first += 1
        _emit_one(counts, times, flags, row, now_s)
        if counts[NUM_KNOWN, row] >= counts[MAX_TOTAL, row]:
            found[2, num_full] = index
            num_full += 1
    return found[0, :num_back], found[1, :num_first], found[2, :num_full]


@compiled(f"UniTuple({_ROWS}, 2)({_COUNTS}, {_TIMES}, {_FLAGS}, {_ROWS}, {_ROWS}, {_COUNTS}, float64)")
def follow(
    counts: Counts, times: Times, flags: Flags, held: Counts, rows: Rows, stands: Counts, now_s: float
) -> tuple[Rows, Rows]:
    """Bring `rows` up to `stands`, int64 [2, rows]: known and computed tokens, those of a step in flight among them.

    held: slots by row. Return indices into `rows`. The first are those that decoded one token: they are up to date
    now. The second did more than that or lost KV: they are as they were. The others did nothing.
    """
    decodes, others = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    num_decodes, num_others = 0, 0
    for index in range(len(rows)):
        row = rows[index]
        stands[1, index] = computed = min(stands[0, index] - 1, stands[1, index])
        num_come, num_run = stands[0, index] - counts[NUM_KNOWN, row], computed - counts[NUM_COMPUTED, row]
        is_usual = not flags[IS_PREEMPTED, row] and 0 <= held[row] - computed <= 1  # a position may be in flight
        if is_usual and num_come == num_run == stands[0, index] - computed == 1:
            counts[NUM_COMPUTED, row] = computed
            _emit_one(counts, times, flags, row, now_s)
            decodes[num_decodes] = index
            num_decodes += 1
        elif not (is_usual and num_come == num_run == 0):
            others[num_others] = index
            num_others += 1
    return decodes[:num_decodes], others[:num_others]
