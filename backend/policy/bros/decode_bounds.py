"""How long a step may be, so that the real-time decodes end in time.

A decode has slack: the time until its next token is due. The objective is on the mean over all tokens, so a decode can
also lend. In steps shorter than its TPOT SLO it gains the difference each time. So it can fall behind by as much as it
gains until its end, and still end in time. The end is unknown. Nine in ten of the outputs that got as far have yet to
see it, at the length that is counted on. Half of the time is lent, since another prompt may come before it is paid
back. Only prompts borrow. Best-effort work gets nothing of it.
"""

# an element of an array is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.policy.state.table_loops import (
    DEADLINE,
    FIRST_TOKEN,
    ITL_SLO,
    MAX_TOTAL,
    NUM_COMPUTED,
    NUM_KNOWN,
    NUM_PROMPT,
    TPOT_SLO,
    Counts,
    Rows,
    Times,
)
from kv.compiled import compiled

_LENT = 0.5  # Part of the time that a decode can catch up with until its end.
_TURN = 10.0  # Steps of all decodes. In one of these, prompts get time although such decodes leave none.
_EARLY = 0.1  # Part of the outputs that got as far, and end before the length that is counted on.


@compiled("int64(int64, int64, float64[:,::1], int64[::1])")
def num_sure(num_output: int, max_output: int, ratios: NDArray[np.float64], counts: Counts) -> int:
    """Return the length of an output, in tokens, that a decode with `num_output` tokens is all but sure to reach.

    ratios, counts: as in OutputLengths. Zero where no output of that size got as far.
    """
    size, rest = 0, max_output
    while rest and size < len(counts) - 1:  # the bits of max_output
        size, rest = size + 1, rest >> 1
    num_known = counts[size]
    num_short = np.searchsorted(ratios[size, :num_known], num_output / max_output, side="right")
    index = num_short + int(_EARLY * (num_known - num_short))
    return int(ratios[size, index] * max_output) if index < num_known else 0


@compiled(
    "Tuple((float64[::1], boolean[::1], UniTuple(float64, 4)))(int64[:,::1], float64[:,::1], int64[::1], float64,"
    " float64, float64, float64, float64, float64, float64[:,::1], int64[::1], float64)"
)
def decode_bounds(
    counts: Counts,
    times: Times,
    rows: Rows,
    now_s: float,
    use: float,
    step_s: float,
    alone_s: float,
    c2: float,
    odd_s: float,
    ratios: NDArray[np.float64],
    num_ratios: Counts,
    catch_up: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[float, float, float, float]]:
    """Return the slack of real-time decodes `rows` times `use`, and whether that is less than a step of each, alone.

    The third value has the longest steps, in seconds, that leave all in time. The first is for prompts, which may
    borrow. Real-time without a loan comes next, then best-effort. The last is the slack that half of them have at
    least. All are infinite without any.

    A late one asks for no more than `catch_up` of its TPOT SLO. One whose TPOT SLO is below a step of its own is late,
    and asks for nothing. Below `odd_s` it asks nothing of real-time, unless most ask for as little. Some leave
    prompts no time in any step: those that not even steps of nothing else can catch up, and inter-token SLOs below
    `odd_s`. In one step of _TURN they bind nothing below `odd_s`. With none, a few long streams would stop all prompts.
    With more, an overload would go on, as prompts become decodes. An inter-token SLO lends nothing, nor does a decode
    without its first token.

    step_s: of all these decodes; alone_s: of one without context, which adds c2 for each token of it. ratios,
    num_ratios: as in OutputLengths.
    """
    slack_s = np.empty(len(rows), np.float64)
    is_late = np.empty(len(rows), np.bool_)
    loan_s = pace_s = odd_loan_s = odd_pace_s = be_s = np.inf
    num_odd = 0
    is_turn = now_s % (_TURN * step_s) < step_s if len(rows) else False
    for index in range(len(rows)):
        row = rows[index]
        slo_s = times[TPOT_SLO, row]
        slack_s[index] = bound_s = (times[DEADLINE, row] - now_s) * use
        is_late[index] = bound_s < alone_s
        if slo_s < alone_s + c2 * counts[NUM_COMPUTED, row]:
            is_late[index] = True
            continue
        if is_late[index]:
            bound_s = max(bound_s, catch_up * slo_s)
        with_loan_s = bound_s
        if times[FIRST_TOKEN, row] < np.inf and times[ITL_SLO, row] == np.inf:
            num_output = counts[NUM_KNOWN, row] - counts[NUM_PROMPT, row]
            most = num_sure(num_output, counts[MAX_TOTAL, row] - counts[NUM_PROMPT, row], ratios, num_ratios)
            gained_s = max(0, most - num_output - 1) * max(0.0, use * slo_s - step_s)
            with_loan_s = max(bound_s, slack_s[index] + _LENT * gained_s)
        be_s = min(be_s, bound_s)
        if is_turn and (catch_up * slo_s < step_s or times[ITL_SLO, row] < odd_s):
            bound_s, with_loan_s = max(bound_s, odd_s), max(with_loan_s, odd_s)
        if slo_s >= odd_s:
            pace_s = min(pace_s, bound_s)
            loan_s = min(loan_s, with_loan_s)
        else:
            num_odd += 1
            odd_pace_s = min(odd_pace_s, bound_s)
            odd_loan_s = min(odd_loan_s, with_loan_s)
    if 2 * num_odd > len(rows):
        pace_s, loan_s = min(pace_s, odd_pace_s), min(loan_s, odd_loan_s)
    half_s = np.sort(slack_s)[len(rows) // 2] if len(rows) else np.inf
    return slack_s, is_late, (loan_s, pace_s, be_s, half_s)
