"""Real-time requests enter by deadline, late ones behind those in time."""

from __future__ import annotations

import pytest

from backend.core.request import Request
from backend.policy.state.objectives import time_alone_s
from tests.backend.factories import Harness, be, rt
from tests.backend.policy.driving import FIT, make, start, start_as_predicted, step


def test_real_time_goes_by_deadline_not_by_arrival() -> None:
    scheduler = make(max_tokens_per_step=32)
    loose, urgent = rt(32, 2, ttft_slo_s=5.0), rt(32, 2, ttft_slo_s=0.3)
    for request in (loose, urgent):
        scheduler.add(request, 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens) == [urgent]


def test_a_late_request_does_not_drag_down_those_in_time() -> None:
    scheduler = make(max_tokens_per_step=32)
    late, on_time = rt(32, 2, ttft_slo_s=0.1), rt(32, 2, arrival_s=0.2, ttft_slo_s=0.4)
    for request in (late, on_time):
        scheduler.add(request, 0.2)
    assert list(scheduler.plan(0.2).num_new_tokens) == [on_time]


@pytest.mark.parametrize(("ttft_slo_s", "has_turn"), [(0.4, True), (100.0, False)])
def test_one_in_time_gives_way_to_a_late_one_only_if_it_can_wait_long(ttft_slo_s: float, has_turn: bool) -> None:
    scheduler = make(max_tokens_per_step=32)
    late, on_time = rt(32, 2, ttft_slo_s=0.1), rt(32, 2, arrival_s=0.2, ttft_slo_s=ttft_slo_s)
    for request in (late, on_time):
        scheduler.add(request, 0.2)
    assert list(scheduler.plan(0.2).num_new_tokens) == [on_time if has_turn else late]


def test_one_that_gave_way_is_first_again_when_half_of_its_slack_is_gone() -> None:
    scheduler = make(max_tokens_per_step=32, num_blocks=1000)
    long = rt(400, 2, ttft_slo_s=20.0)
    scheduler.add(long, 0.0)
    for now_s in (0.5, 19.0):
        scheduler.add(rt(32, 2, arrival_s=now_s - 0.2, ttft_slo_s=0.1), now_s)
        is_first = list(scheduler.plan(now_s).num_new_tokens) == [long]
        assert is_first == (now_s == 19.0)


def test_no_late_request_begins_while_one_in_time_waits_for_a_batch_slot() -> None:
    scheduler = make(max_seqs_per_step=2)
    start(scheduler, *(rt(10, 50, tpot_slo_s=0.012) for _ in range(2)))  # a token in each step: none can spare its slot
    late, on_time = rt(10, 2, ttft_slo_s=0.09), rt(10, 2, arrival_s=0.1, ttft_slo_s=0.8)
    for request in (late, on_time):
        scheduler.add(request, 0.1)
    assert not {late, on_time} & set(scheduler.plan(0.1).num_new_tokens)
    scheduler.cancel(scheduler.view.table.request(0).request_id, 0.1)  # one batch slot
    assert on_time in scheduler.plan(0.1).num_new_tokens
    assert late not in scheduler.plan(0.1).num_new_tokens


def test_what_this_step_cannot_bring_in_time_is_late() -> None:
    """Served alone it would make it, but decodes that cannot wait are in already."""
    lost, on_time, planned = _plan_beside_decodes(tpot_slo_s=0.02)
    assert on_time in planned
    assert lost not in planned


def test_decodes_with_slack_wait_for_a_prompt_that_would_be_late_beside_them() -> None:
    tight, _, planned = _plan_beside_decodes(tpot_slo_s=5.0)
    assert tight in planned
    assert sum(num_tokens == 1 for num_tokens in planned.values()) < 30


def _plan_beside_decodes(tpot_slo_s: float) -> tuple[Request, Request, dict[Request, int]]:
    """Return a prompt in time alone but not beside all of 30 decodes, one that has time, and the step planned."""
    scheduler = make(max_seqs_per_step=40, max_tokens_per_step=62, responsiveness_cap_s=1.0)
    now_s = start_as_predicted(scheduler, *(rt(10, 50, tpot_slo_s=tpot_slo_s) for _ in range(30)))
    alone_s = time_alone_s(rt(32, 2), scheduler.view.latency)
    beside_s = alone_s + scheduler.plan(now_s).predicted_s - scheduler.view.latency.c0
    tight, loose = (rt(32, 2, arrival_s=now_s, ttft_slo_s=slo_s) for slo_s in (0.5 * (alone_s + beside_s), 1.0))
    for request in (tight, loose):
        scheduler.add(request, now_s)
    return tight, loose, dict(scheduler.plan(now_s).num_new_tokens)


def test_overload_costs_the_requests_beyond_capacity_and_no_others() -> None:
    """1.5 times what the batch slots can serve: about a third must be late, not all; and everything is finished."""
    harness = Harness(max_seqs_per_step=8, num_blocks=2000, coefficients=FIT[:5], verify=False)
    requests = [rt(20, 40, ttft_slo_s=0.4) for _ in range(240)]
    for index, request in enumerate(requests):  # a batch slot is free every 40 steps / 8 = 5 steps of about 11 ms
        harness.submit(request)
        harness.step(3 + index % 2)
    harness.run()
    ttft_s = [harness.token_times[request.request_id][0] - request.arrival_s for request in requests]
    assert sum(time_s <= 0.4 for time_s in ttft_s) >= 0.6 * len(requests)
    assert all(len(harness.tokens[request.request_id]) == 40 for request in requests)


def test_relegated_requests_finish() -> None:
    harness = Harness(max_tokens_per_step=64, num_blocks=64)
    requests = [rt(200, 20, ttft_slo_s=0.001, tpot_slo_s=0.001) for _ in range(8)]
    harness.submit(*requests)
    harness.run()
    assert all(len(harness.tokens[request.request_id]) == 20 for request in requests)


def test_decodes_far_ahead_run_all_the_same_where_time_allows() -> None:
    """See docs/decisions/0001-real-time-runs-ahead.md."""
    scheduler = make(max_seqs_per_step=4)
    ahead = [rt(4, 50, tpot_slo_s=5.0) for _ in range(4)]
    start(scheduler, *ahead)
    scheduler.add(be(4, 5), 0.0)
    assert set(scheduler.plan(0.01).num_new_tokens) == set(ahead)


def test_requests_in_time_begin_beyond_the_batch_slots_where_decodes_can_wait() -> None:
    scheduler = make(max_seqs_per_step=4)
    ahead = [rt(10, 50, tpot_slo_s=1.0) for _ in range(4)]
    start(scheduler, *ahead)
    newcomers = [rt(10, 50, arrival_s=0.1, tpot_slo_s=1.0) for _ in range(2)]
    for request in newcomers:
        scheduler.add(request, 0.1)
    plan = step(scheduler, 0.1)
    assert list(plan.num_new_tokens)[:2] == newcomers  # the decodes have 0.9 s
    assert len(set(ahead) & set(plan.num_new_tokens)) == 2  # and take the remaining batch slots


def test_of_decodes_that_can_wait_the_oldest_ends_first() -> None:
    """By slack, the younger ones would overtake it: it has the longest time to its next token."""
    scheduler = make(max_seqs_per_step=2)
    oldest, younger = rt(10, 50, tpot_slo_s=3.0), rt(10, 50, tpot_slo_s=1.0)
    start(scheduler, oldest, younger)
    scheduler.add(newcomer := rt(10, 50, arrival_s=0.1, tpot_slo_s=1.0), 0.1)
    assert list(scheduler.plan(0.1).num_new_tokens) == [newcomer, oldest]


def test_a_decode_that_is_due_keeps_its_batch_slot() -> None:
    scheduler = make(max_seqs_per_step=4)
    ahead = [rt(10, 50, tpot_slo_s=1.0) for _ in range(4)]
    start(scheduler, *ahead)
    newcomer = rt(10, 50, arrival_s=0.99, tpot_slo_s=1.0)
    scheduler.add(newcomer, 0.99)
    assert set(scheduler.plan(0.99).num_new_tokens) == set(ahead)  # due at 1.001 s, the newcomer at 1.39 s


def test_every_schedule_beyond_the_batch_slots_keeps_the_pace() -> None:
    """Three times as many requests as batch slots: at 60 ms a token and 10.8 ms a step, each gets its turn."""
    harness = Harness(
        max_seqs_per_step=8, num_blocks=2000, coefficients=FIT[:5], latency_coefficients=FIT, verify=False
    )
    requests = [rt(20, 40, ttft_slo_s=1.0, tpot_slo_s=0.06) for _ in range(24)]
    for request in requests:
        harness.submit(request)
    harness.run()
    times_s = [harness.token_times[request.request_id] for request in requests]
    assert all(len(times) == 40 and (times[-1] - times[0]) / 39 <= 0.06 for times in times_s)
    assert sum(times[0] - request.arrival_s <= 1.0 for times, request in zip(times_s, requests, strict=True)) >= 20


def test_of_equal_deadlines_the_shortest_prompt_goes_first() -> None:
    scheduler = make(max_tokens_per_step=64)
    long, short, shorter = rt(60, 2), rt(40, 2), rt(20, 2)
    for request in (long, short, shorter):
        scheduler.add(request, 0.0)
    assert list(step(scheduler, 0.0).num_new_tokens)[:2] == [shorter, short]


def test_of_deadlines_in_one_span_the_shortest_prompt_goes_first_and_no_other_overtakes() -> None:
    """A burst comes within milliseconds, not at one moment."""
    scheduler = make(max_tokens_per_step=96)
    long, short = rt(96, 2, ttft_slo_s=5.001), rt(32, 2, arrival_s=0.01, ttft_slo_s=5.0)
    later = rt(16, 2, arrival_s=0.06, ttft_slo_s=5.0)
    for request in (long, short, later):
        scheduler.add(request, 0.06)
    assert scheduler.plan(0.06).num_new_tokens == {short: 32, long: 64}


def test_a_crowd_of_equal_deadlines_is_served_as_far_as_time_allows() -> None:
    """50 ms serve three short prompts or one long one; the long one came first."""
    scheduler = make(max_tokens_per_step=2048)
    crowd = [rt(320, 1, ttft_slo_s=0.05), *(rt(80, 1, ttft_slo_s=0.05) for _ in range(4))]
    for request in crowd:
        scheduler.add(request, 0.0)
    now_s, in_time = 0.0, 0
    while not scheduler.is_idle:
        now_s += step(scheduler, now_s).predicted_s
        in_time += now_s <= 0.05 and sum(request.num_output for request in crowd)
    assert in_time >= 3


def test_real_time_preempts_real_time_that_was_due_later_only() -> None:
    scheduler = make(num_blocks=8, max_seq_len=128, max_seqs_per_step=4, checkpoints=False)
    early, late = rt(40, 60, tpot_slo_s=1.0), rt(40, 60, ttft_slo_s=0.9, tpot_slo_s=1.0)
    start(scheduler, early, late)
    now_s = 0.1
    while not scheduler.is_idle and not any(request.num_preemptions for request in (early, late)):
        now_s += step(scheduler, now_s).predicted_s
    assert (early.num_preemptions, late.num_preemptions) == (0, 1)
