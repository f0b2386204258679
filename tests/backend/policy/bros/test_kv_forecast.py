"""The KV forecast: whether running requests find slots until they end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.request import Request
from backend.engine.scheduler import Scheduler
from backend.policy.bros.kv_forecast import KVForecast, expected_growth, peak_slots
from backend.policy.packing import Packing
from backend.policy.state.table_loops import Rows
from tests.backend.factories import be, rt
from tests.backend.policy.driving import make, start


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=12))
def test_the_peak_of_future_slots_is_what_a_simulation_finds(requests: list[tuple[int, int]]) -> None:
    """The formula's slow twin: let all grow by one a step and leave when done."""
    running, peak = [list(request) for request in requests], 0
    while running:
        for request in running:
            request[0] += 1
            request[1] -= 1
        peak = max(peak, sum(held for held, _ in running))
        running = [request for request in running if request[1]]
    held, remaining = np.array(requests).T
    assert peak_slots(held, remaining) == peak


def test_a_request_is_expected_to_end_at_its_usual_length_or_in_the_next_step() -> None:
    expected = expected_growth(0.1, np.array([0, 5, 10, 50]), np.array([100, 100, 100, 100]))
    assert expected.tolist() == [10, 5, 1, 1]


def filled(is_rt: bool) -> Scheduler:
    """16 blocks of 16, in which two requests of a class grow to 100 tokens each."""
    scheduler = make(num_blocks=16, max_seq_len=256, kv_headroom_ratio=0.0)
    scheduler.view.traffic.rt_output_ratio = scheduler.view.traffic.be_output_ratio = 1.0
    start(scheduler, *((rt if is_rt else be)(20, 80) for _ in range(2)))
    return scheduler


def forecast(scheduler: Scheduler, is_rt: bool) -> KVForecast:
    return KVForecast(scheduler.view, Packing(scheduler.view), is_rt)


@pytest.mark.parametrize("is_rt", [True, False])
def test_a_request_has_room_if_all_find_slots_until_they_end(is_rt: bool) -> None:
    scheduler, one = filled(is_rt), rt if is_rt else be
    assert forecast(scheduler, is_rt).has_room_for(one(20, 10))
    assert not forecast(scheduler, is_rt).has_room_for(one(100, 100))


def test_the_classes_do_not_count_each_other_but_best_effort_leaves_what_real_time_holds() -> None:
    scheduler = filled(is_rt=False)
    assert forecast(scheduler, is_rt=True).has_room_for(rt(100, 100))
    small = be(20, 10)
    assert forecast(scheduler, is_rt=False).has_room_for(small)
    start(scheduler, rt(60, 10), now_s=1.0)
    assert not forecast(scheduler, is_rt=False).has_room_for(small)


def test_what_was_taken_counts_from_then_on() -> None:
    scheduler = filled(is_rt=False)
    with_more, small = forecast(scheduler, is_rt=False), be(20, 10)
    with_more.take(be(60, 60))
    assert not with_more.has_room_for(small)


def test_as_few_as_needed_must_leave() -> None:
    scheduler = filled(is_rt=True)
    rows = scheduler.view.table.rows()

    def left(candidates: Rows, newcomer: Request) -> list[int] | None:
        packing = Packing(scheduler.view)
        forecast = KVForecast(scheduler.view, packing, is_rt=True)
        gone = forecast.make_room_for(newcomer, candidates)
        assert (gone is None) == (not forecast.has_room_for(newcomer))
        assert [packing.is_cut(row) for row in rows] == [gone is not None and row in gone for row in rows]
        return None if gone is None else gone.tolist()

    assert left(rows, rt(20, 10)) == []
    assert left(rows, rt(60, 60)) == rows[:1].tolist()
    assert left(rows[:0], rt(100, 100)) is None
