"""A step being planned: what fits, whose slots give way, and whether they are copied."""

from __future__ import annotations

import pytest

from backend.core.request import RequestState
from backend.policy.packing import Packing
from kv.types import Row
from tests.backend.factories import be, rt
from tests.backend.policy.driving import FIT, make, start, step
from tests.fuzz import Form, FuzzRun


def test_the_first_prefill_of_a_step_costs_more_than_the_next() -> None:
    scheduler = make(latency_coefficients=(*FIT[:5], 5e-3))
    for request in (rt(40, 5, ttft_slo_s=1.0), rt(30, 5, ttft_slo_s=1.0)):
        scheduler.add(request, 0.0)
    assert scheduler.plan(0.0).predicted_s == pytest.approx(10e-3 + 5e-3 + 70 * 100e-6)


def test_a_whole_prompt_is_taken_where_chunking_is_off() -> None:
    scheduler = make(chunked_prefill=False)
    scheduler.add(be(1500, 2), 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens.values()) == [1500]


def test_real_time_takes_slots_from_the_end_of_a_best_effort_request() -> None:
    scheduler = make(num_blocks=8, max_seq_len=128)
    victim = be(120, 3)
    start(scheduler, victim)
    scheduler.add(rt(30, 3), 0.0)
    (reclaim,) = scheduler.plan(0.0).reclaims
    assert reclaim.request is victim
    assert 80 <= reclaim.num_kept < 120


@pytest.mark.parametrize(("copy_s", "is_copied"), [(1e-9, True), (1.0, False)])
def test_lost_kv_is_copied_or_computed_again_whichever_is_cheaper(copy_s: float, is_copied: bool) -> None:
    scheduler = make(num_blocks=8, max_seq_len=128, latency_coefficients=(*FIT[:4], copy_s, 0.0))
    start(scheduler, be(120, 3))
    scheduler.add(rt(30, 3), 0.0)
    (reclaim,) = scheduler.plan(0.0).reclaims
    assert reclaim.checkpoint is is_copied


def test_of_two_victims_the_younger_loses() -> None:
    scheduler = make(num_blocks=8, max_seq_len=128, kv_headroom_ratio=0.0)
    older, younger = be(60, 3), be(60, 3)
    start(scheduler, older, younger)
    scheduler.add(rt(30, 3), 0.0)
    assert [reclaim.request for reclaim in scheduler.plan(0.0).reclaims] == [younger]


def test_a_chunk_is_as_large_as_time_tokens_and_limits_allow() -> None:
    scheduler = make(max_tokens_per_step=256)
    packing, request = Packing(scheduler.view), rt(1000, 5)
    packing.add(be(1, 5), 1)  # not alone
    assert packing.chunk(request, 5e-3, 1000) == 50
    assert packing.chunk(request, 1.0, 1000) == 255
    assert packing.chunk(request, 1e-3, 1000) == 0, "10 tokens are not worth a batch slot"
    assert packing.chunk(rt(10, 5), 1e-3, 1000) == 10, "but the end of a prompt is"


def test_victims_hold_something_and_are_not_in_the_step() -> None:
    scheduler = make()
    requests = [be(20, 5) for _ in range(3)]
    start(scheduler, *requests)
    packing = Packing(scheduler.view)
    rows = scheduler.view.table.rows()
    packing.add(requests[0], 1)
    packing.cut(int(rows[1]), 0)
    assert list(packing.victims(rows)) == [requests[2].row]


def test_the_youngest_is_the_first_victim_behind_what_does_not_run() -> None:
    scheduler = make()
    requests = [be(20, 5) for _ in range(3)]
    start(scheduler, *requests)
    table = scheduler.view.table
    table.is_preempted[requests[0].row] = True
    victims = Packing(scheduler.view).victims(table.rows())
    assert [table.request(row) for row in victims] == [requests[0], requests[2], requests[1]]


def test_what_gave_up_its_own_slots_begins_again_in_the_same_step() -> None:
    scheduler, request = make(), be(20, 5)
    start(scheduler, request)
    packing = Packing(scheduler.view)
    assert request.row is not None
    assert request.num_uncomputed == 1
    packing.cut(request.row, 0)
    assert packing.add(request, 21)
    scheduler.commit(packing.plan(1.0))
    assert scheduler.kv.num_held(Row(request.row)) == 21
    assert request.num_computed == 0


def test_what_begins_again_also_gets_the_slots_that_it_had_borrowed() -> None:
    """This run of 10,000 once stood still: a real-time request had borrowed its prefix from the only other one."""
    assert FuzzRun(8783).run() > 109


def test_what_begins_again_gets_slots_that_a_cached_row_had_borrowed() -> None:
    """This run stood still: real-time borrowed from a cached row, and that from the only other request."""
    assert FuzzRun(408, form=Form.TINY_POOL).run() > 176


def test_what_begins_again_keeps_no_slots_for_a_cached_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine once ended here: a cached row borrowed from the request that was to begin again."""
    scheduler = make(prefix_caching=True)
    lender, borrower = be(prompt=[7] * 49, max_tokens=30), be(prompt=[7] * 48 + [8] * 17, max_tokens=2)
    start(scheduler, lender)
    start(scheduler, borrower)
    step(scheduler, 0.0, 1e-3)
    assert lender.row is not None
    assert borrower.state is RequestState.FINISHED
    packing = Packing(scheduler.view)
    packing.cut(lender.row, 0)
    assert packing.num_held(lender.row) > 0, "the cached row does not borrow: the test is void"

    packing = Packing(scheduler.view)
    refusals = iter([False, False])  # the slots of others do not suffice, as where those of the request have gaps
    make_room = packing.make_room_whole
    monkeypatch.setattr(packing, "make_room_whole", lambda *rest: next(refusals, True) and make_room(*rest))
    plan = packing.plan(1.0)
    assert plan.num_new_tokens == {lender: len(lender.token_ids)}
    scheduler.commit(plan)


def test_victims_give_way_in_order_and_keep_what_is_not_needed() -> None:
    scheduler = make(num_blocks=8, max_seq_len=128, kv_headroom_ratio=0.0)
    first, second = be(60, 3), be(60, 3)
    start(scheduler, first, second)
    packing, rows = Packing(scheduler.view), [first.row, second.row]
    assert packing.make_room(rt(70, 3), 70, [row for row in rows if row is not None])
    assert packing.num_held(rows[0] or 0) == 0
    assert 0 < packing.num_held(rows[1] or 0) < 60
