"""The loops over what a step did, compiled (kv/compiled.py)."""

# an element of an array is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.policy.state.table_loops import Rows
from kv.compiled import compiled


@compiled("Tuple((int64, int64, float64))(int64[::1], int64[::1], int64[::1])")
def features(num_computed: Rows, rows: Rows, num_new: Rows) -> tuple[int, int, float]:
    """Return new tokens, context tokens of decodes and pairs of prefill chunks, before `num_computed` counts them."""
    num_tokens, num_context, pairs = 0, 0, 0.0
    for index in range(len(rows)):
        start, num = num_computed[rows[index]], num_new[index]
        num_tokens += num
        if num == 1:
            num_context += start
        else:
            pairs += num * (start + 0.5 * num)
    return num_tokens, num_context, pairs


@compiled("int64(boolean[::1], int64[::1], int64[::1])")
def num_rt_tokens(is_rt: NDArray[np.bool_], rows: Rows, num_new: Rows) -> int:
    """Return the real-time tokens of a step."""
    total = 0
    for index in range(len(rows)):
        if is_rt[rows[index]]:
            total += num_new[index]
    return total
