"""The loops over what a step did, compiled (kv/compiled.py)."""

# an element of an array is Any to mypy.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.policy.state.table_loops import Rows
from kv.compiled import compiled


@compiled("Tuple((int64, int64, int64, float64))(int64[::1], boolean[::1], int64[::1], int64[::1])")
def features(num_computed: Rows, is_rt: NDArray[np.bool_], rows: Rows, num_new: Rows) -> tuple[int, int, int, float]:
    """Return new tokens, those of real-time, context tokens of decodes and pairs of prefill chunks, before
    `num_computed` counts them."""
    num_tokens, num_rt, num_context, pairs = 0, 0, 0, 0.0
    for index in range(len(rows)):
        start, num = num_computed[rows[index]], num_new[index]
        num_tokens += num
        if is_rt[rows[index]]:
            num_rt += num
        if num == 1:
            num_context += start
        else:
            pairs += num * (start + 0.5 * num)
    return num_tokens, num_rt, num_context, pairs
