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
    assert [rows.tolist() for rows in table.groups()[:4]] == [rows.tolist() for rows in expected]


def test_sums_over_those_that_run() -> None:
    table = filled()
    table.num_borrowed[::5] = 2
    table.deadline_s[::4] = 1.0
    groups = table.groups()
    for is_rt, running in ((True, groups.rt_running), (False, groups.be_running)):
        decodes, prefills = groups[:2] if is_rt else groups[2:4]
        rows = np.concatenate((decodes, prefills[~table.is_preempted[prefills]]))
        assert running == (len(rows), (table.max_total[rows] - table.num_borrowed[rows]).sum())
    assert groups.num_rt_known == table.num_rt_known()
    has_deadline = table.deadline_s < np.inf
    assert groups.num_be_deadlines == np.count_nonzero(table.is_active & ~table.is_rt & has_deadline) > 0


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


def test_those_that_can_wait_by_arrival() -> None:
    table = filled()
    table.arrival_index[:] = np.random.default_rng(5).permutation(len(table.arrival_index))
    rows, slack_s = table.rows(), np.linspace(0.0, 1.0, 40)
    expected = rows[slack_s > 0.3][table.arrival_index[rows[slack_s > 0.3]].argsort()]
    assert table_loops.deferrable(table.counts, rows, slack_s, 0.3).tolist() == expected.tolist()
    assert not len(table_loops.deferrable(table.counts, rows, slack_s, 1.0))


def test_who_decoded_one_token_is_brought_up_to_date_and_others_are_named() -> None:
    table = filled()
    rows, held = table.rows(), table.num_computed + 1
    is_decode = (table.num_known - table.num_computed == 1) & ~table.is_preempted
    stands = np.stack((table.num_known[rows] + 1, table.num_known[rows] + 1))  # the last one is in flight
    stands[:, 5] -= 1  # did not run
    before = table.num_known.copy(), table.num_computed.copy()
    decodes, others = table.follow(held, rows, stands, 3.0)
    expected = [row for row in rows.tolist() if is_decode[row] and row != 5]
    assert decodes.tolist() == expected
    assert others.tolist() == [row for row in rows.tolist() if not is_decode[row]]
    for column, old in zip((table.num_known, table.num_computed), before, strict=True):
        assert (column - old).nonzero()[0].tolist() == expected
    assert set(table.last_token_s[expected]) == {3.0}
