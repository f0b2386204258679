"""The request table: deadlines of the next tokens, and columns that grow."""

from __future__ import annotations

import numpy as np
import pytest

from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.request_table import RequestTable
from tests.backend.factories import be, rt
from tests.backend.policy.driving import FIT, make, start, step


def test_token_deadlines_are_cumulative() -> None:
    scheduler, request = make(), rt(10, 9, tpot_slo_s=0.1)
    start(scheduler, request)  # the first token comes at 1 ms
    table, row = scheduler.view.table, request.row
    for num_output, end_s in ((2, 0.02), (3, 0.03)):  # far ahead of schedule
        step(scheduler, end_s - 0.01, end_s)
        assert table.deadline_s[row] == pytest.approx(0.001 + num_output * 0.1)


def test_an_itl_slo_bounds_the_gap_to_the_next_token() -> None:
    scheduler, request = make(), rt(10, 9, tpot_slo_s=0.1, itl_slo_s=0.15)
    start(scheduler, request)
    step(scheduler, 0.01, 0.02)
    assert scheduler.view.table.deadline_s[request.row] == pytest.approx(0.02 + 0.15)


def test_a_table_grows_and_keeps_what_it_holds() -> None:
    table, requests = RequestTable(), [rt(10 + index, 5) for index in range(100)]
    for row, request in enumerate(requests):
        request.arrival_index, request.row = row, row
        table.enter(request, row, request.max_total_tokens)
    table.check_invariants()
    assert table.requests_in(table.rows()) == requests
    assert table.num_prompt[table.rows()].tolist() == [10 + index for index in range(100)]


def test_a_row_is_free_again_after_its_request_left() -> None:
    table, request = RequestTable(), be(10, 5)
    table.enter(request, 3, 15)
    table.leave(3)
    assert not len(table.rows())
    with pytest.raises(AssertionError, match="row 3 is empty"):
        table.request(3)


def test_a_cut_is_remembered_until_all_was_computed_again() -> None:
    table, request, row = RequestTable(), be(50, 5), np.array([0])
    table.enter(request, 0, 55)
    assert table.compute(row, np.array([40])) == 0
    table.cut(0, 10)
    assert table.is_preempted[0]
    assert table.compute(row, np.array([35])) == 30  # 10 to 40 for the second time, then 5 new ones


def test_a_step_of_the_real_time_decodes_counts_no_other() -> None:
    scheduler = make()
    start(scheduler, rt(10, 9), rt(10, 9), be(10, 9))
    assert scheduler.view.table.rt_step_s(LatencyModel(FIT)) == pytest.approx(10e-3 + 2 * 100e-6)
