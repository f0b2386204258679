"""The compiled loops find what obvious code finds."""

from __future__ import annotations

import numpy as np

from backend.policy.state import table_loops
from backend.policy.state.request_table import RequestTable
from tests.backend.factories import be, rt


def filled(num_requests: int = 40) -> RequestTable:
    """A table of both classes: computed up to some point, every third one preempted."""
    table, draw = RequestTable(), np.random.default_rng(3)
    for row in range(num_requests):
        request = (rt if row % 2 else be)(int(draw.integers(2, 90)), 8)
        request.arrival_index = row
        table.enter(request, row, request.max_total_tokens)
        table.num_computed[row] = draw.choice((table.num_known[row] - 1, draw.integers(0, table.num_known[row])))
        table.is_preempted[row] = row % 3 == 0
    return table


def test_groups_are_by_class_and_by_whether_one_token_is_left() -> None:
    table = filled()
    is_decode = table.num_known - table.num_computed == 1
    expected = [
        np.flatnonzero(table.is_active & (table.is_rt == is_rt) & (is_decode == decodes))
        for is_rt in (True, False)
        for decodes in (True, False)
    ]
    assert [rows.tolist() for rows in table.groups()] == [rows.tolist() for rows in expected]


def test_sums_over_rows() -> None:
    table = filled()
    rows = np.ascontiguousarray(table.rows()[::3])
    assert table.num_rt_known() == table.num_known[table.is_rt & table.is_active].sum()
    assert table_loops.context(table.counts, rows) == table.num_computed[rows].sum()


def test_as_many_decodes_as_the_budget_holds_from_the_first_on() -> None:
    table = filled()
    rows = table.rows()
    ends_s = 0.01 + np.cumsum(1e-3 + 1e-5 * table.num_computed[rows])
    for budget_s in (0.0, 0.011, 0.02, 1.0):
        expected = np.count_nonzero(ends_s <= budget_s)
        assert table_loops.num_in_time(table.counts, rows, 1e-3, 1e-5, 0.01, budget_s) == expected
