"""Lending: how long a step of real-time prompts may be, if the decodes catch up before they end.

The objective of a decode is on the mean over all its tokens. In steps shorter than its TPOT SLO it gains the difference
each time. So it can fall behind by as much as it gains until its end, and still end in time. A part of that is lent to
prompts, since an output may end early, and another prompt may come. Best-effort work gets nothing of it.
"""

# an element of an array is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.policy.state.table_loops import (
    ITL_SLO,
    LAST_TOKEN,
    MAX_TOTAL,
    NUM_KNOWN,
    NUM_PROMPT,
    TPOT_SLO,
    Counts,
    Rows,
    Times,
)
from kv.compiled import compiled

_LENT = 0.25  # part of the time that a decode can catch up with until its usual end


@compiled(
    "float64(int64[:,::1], float64[:,::1], int64[::1], float64[::1], float64, float64, float64, float64, float64)"
)
def longest_step_s(
    counts: Counts,
    times: Times,
    rows: Rows,
    slack_s: NDArray[np.float64],
    now_s: float,
    use: float,
    output_ratio: float,
    step_s: float,
    odd_s: float,
) -> float:
    """Return the longest step after which real-time decodes `rows`, of usable slack `slack_s`, can catch up in steps of
    `step_s`.

    output_ratio: part of max_tokens that is usually put out. An inter-token SLO lends nothing. A TPOT SLO below
    `step_s` does not count. One below `odd_s` counts where most are.
    """
    all_s = usual_s = np.inf
    num_odd = 0
    for index in range(len(rows)):
        row = rows[index]
        slo_s = times[TPOT_SLO, row]
        if slo_s < step_s:
            continue
        num_output = counts[NUM_KNOWN, row] - counts[NUM_PROMPT, row]
        num_left = output_ratio * (counts[MAX_TOTAL, row] - counts[NUM_PROMPT, row]) - num_output - 1
        bound_s = slack_s[index] + _LENT * max(0.0, num_left) * max(0.0, use * slo_s - step_s)
        bound_s = min(bound_s, use * (times[LAST_TOKEN, row] + times[ITL_SLO, row] - now_s))
        all_s = min(all_s, bound_s)
        if slo_s < odd_s:
            num_odd += 1
        else:
            usual_s = min(usual_s, bound_s)
    return all_s if 2 * num_odd > len(rows) else usual_s
