"""The compiled loops over a step find what obvious code finds."""

from __future__ import annotations

import numpy as np
import pytest

from backend.engine import step_loops
from tests.backend.policy.state.test_table_loops import filled


def test_features_count_context_of_decodes_and_pairs_of_chunks() -> None:
    table = filled()
    rows = table.rows()[:4]
    new = np.array([1, 5, 1, 9])
    s = table.num_computed[rows]
    num_rt = new[table.is_rt[rows]].sum()
    expected = (16, num_rt, s[0] + s[2], 5 * (s[1] + 2.5) + 9 * (s[3] + 4.5))
    assert step_loops.features(table.num_computed, table.is_rt, rows, new) == pytest.approx(expected)


def test_tokens_of_real_time_are_counted() -> None:
    table = filled()
    rows = np.ascontiguousarray(table.rows()[::3])
    new = np.arange(1, len(rows) + 1)
    assert step_loops.features(table.num_computed, table.is_rt, rows, new)[1] == new[table.is_rt[rows]].sum()
