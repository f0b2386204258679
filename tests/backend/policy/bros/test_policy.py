"""The rules of the BROS policy (docs/algorithm.md), each as a claim."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.plan import StepPlan, StepResult
from backend.core.request import PriorityClass, Request, RequestState
from backend.engine.scheduler import Scheduler
from backend.policy.bros.kv_forecast import expected_growth, peak_slots
from backend.policy.bros.policy import _RealTimeStep
from backend.policy.state.objectives import time_alone_s
from tests.backend.factories import BE, RT, Harness, be, make_scheduler_for_test, rt

FIT = (10e-3, 100e-6, 0.0, 0.0, 1e-6, 0.0)  # 10 ms a step and 0.1 ms a token: times are easy to reckon


def make(**knobs: object) -> Scheduler:
    return make_scheduler_for_test(**{"latency_coefficients": FIT, "budget_margin": 0.0, **knobs})


def step(scheduler: Scheduler, now_s: float, end_s: float | None = None) -> StepPlan:
    """Run one step, which takes what the model predicts, or until `end_s`."""
    plan = scheduler.plan(now_s)
    batch = scheduler.commit(plan)
    pairs = zip(batch.sequences, batch.num_new_tokens, strict=True)
    tokens = [7 if seq.num_computed + num == len(seq.token_ids) else None for seq, num in pairs]
    duration_s = plan.predicted_s if end_s is None else end_s - now_s
    scheduler.complete(batch, StepResult(tokens, duration_s), now_s + duration_s)
    return plan


def start(scheduler: Scheduler, *requests: Request, now_s: float = 0.0) -> None:
    """Add requests and prefill them."""
    for request in requests:
        scheduler.add(request, now_s)
    while any(request.num_output == 0 for request in requests):
        step(scheduler, now_s, now_s + 1e-3)


def start_as_predicted(scheduler: Scheduler, *requests: Request) -> float:
    """Add requests at 0 and prefill them, each step as long as the model says, so that it stays; return the time."""
    now_s = 0.0
    for request in requests:
        scheduler.add(request, now_s)
    while any(request.num_output == 0 for request in requests):
        now_s += step(scheduler, now_s).predicted_s
    return now_s


# Deadlines


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


# Order


def test_real_time_goes_by_deadline_not_by_arrival() -> None:
    scheduler = make(max_tokens_per_step=32)
    patient, urgent = rt(32, 2, ttft_slo_s=5.0), rt(32, 2, ttft_slo_s=0.3)
    for request in (patient, urgent):
        scheduler.add(request, 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens) == [urgent]


def test_a_late_request_does_not_drag_down_those_in_time() -> None:
    scheduler = make(max_tokens_per_step=32)
    late, on_time = rt(32, 2, ttft_slo_s=0.1), rt(32, 2, arrival_s=0.2, ttft_slo_s=0.4)
    for request in (late, on_time):
        scheduler.add(request, 0.2)
    assert list(scheduler.plan(0.2).num_new_tokens) == [on_time]


def test_no_late_request_begins_while_one_in_time_waits_for_a_place() -> None:
    scheduler = make(max_seqs_per_step=2)
    start(
        scheduler, *(rt(10, 50, tpot_slo_s=0.012) for _ in range(2))
    )  # a token in each step: none can spare its place
    late, on_time = rt(10, 2, ttft_slo_s=0.09), rt(10, 2, arrival_s=0.1, ttft_slo_s=5.0)
    for request in (late, on_time):
        scheduler.add(request, 0.1)
    assert not {late, on_time} & set(scheduler.plan(0.1).num_new_tokens)
    scheduler.cancel(scheduler.view.table.request(0).request_id, 0.1)  # one place
    assert on_time in scheduler.plan(0.1).num_new_tokens
    assert late not in scheduler.plan(0.1).num_new_tokens


def test_what_this_step_cannot_bring_in_time_is_late() -> None:
    """Served alone it would make it, but the decodes are in already."""
    scheduler = make(max_seqs_per_step=40, max_tokens_per_step=62, responsiveness_cap_s=1.0)
    now_s = start_as_predicted(scheduler, *(rt(10, 50) for _ in range(30)))
    alone_s = time_alone_s(rt(32, 2), scheduler.view.latency)
    beside_s = alone_s + scheduler.plan(now_s).predicted_s - scheduler.view.latency.c0
    lost, on_time = (rt(32, 2, arrival_s=now_s, ttft_slo_s=slo_s) for slo_s in (0.5 * (alone_s + beside_s), 1.0))
    for request in (lost, on_time):
        scheduler.add(request, now_s)
    assert on_time in scheduler.plan(now_s).num_new_tokens
    assert lost not in scheduler.plan(now_s).num_new_tokens


def test_overload_costs_the_requests_beyond_capacity_and_no_others() -> None:
    """1.5 times what the places can serve: about a third must be late, not all; and everything is finished."""
    harness = Harness(max_seqs_per_step=8, num_blocks=2000, coefficients=FIT[:5], verify=False)
    requests = [rt(20, 40, ttft_slo_s=0.4) for _ in range(240)]
    for index, request in enumerate(requests):  # a place is free every 40 steps / 8 = 5 steps of about 11 ms
        harness.submit(request)
        harness.step(3 + index % 2)
    harness.run()
    ttft_s = [harness.token_times[request.request_id][0] - request.arrival_s for request in requests]
    assert sum(time_s <= 0.4 for time_s in ttft_s) >= 0.6 * len(requests)
    assert all(len(harness.tokens[request.request_id]) == 40 for request in requests)


def test_late_requests_stay_ahead_of_best_effort() -> None:
    scheduler = make(max_tokens_per_step=32)
    best_effort, late = be(32, 2), rt(32, 2, ttft_slo_s=0.1)
    for request in (best_effort, late):
        scheduler.add(request, 1.0)
    assert list(scheduler.plan(1.0).num_new_tokens) == [late]


def test_relegated_requests_finish() -> None:
    harness = Harness(max_tokens_per_step=64, num_blocks=64)
    requests = [rt(200, 20, ttft_slo_s=0.001, tpot_slo_s=0.001) for _ in range(8)]
    harness.submit(*requests)
    harness.run()
    assert all(len(harness.tokens[request.request_id]) == 20 for request in requests)


def test_best_effort_nearest_its_end_goes_first() -> None:
    scheduler = make(responsiveness_cap_s=10.0)
    long, short = be(10, 90), be(10, 20)
    start(scheduler, long, short)
    scheduler.add(rt(4, 5), 0.0)
    plan = scheduler.plan(0.0)
    order = [request for request in plan.num_new_tokens if not request.is_rt]
    assert order == [short, long]


# The step budget


def test_best_effort_fills_the_step_up_to_the_tightest_deadline() -> None:
    scheduler = make(adaptive_window=False)
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    scheduler.add(be(2000, 5), 0.0)
    plan = scheduler.plan(0.001)  # the next token is due at 51 ms
    assert 0.8 * 0.05 < plan.predicted_s <= 0.05


def test_the_first_prefill_of_a_step_costs_more_than_the_next() -> None:
    scheduler = make(adaptive_window=False, latency_coefficients=(*FIT[:5], 5e-3))
    for request in (rt(40, 5, ttft_slo_s=1.0), rt(30, 5, ttft_slo_s=1.0)):
        scheduler.add(request, 0.0)
    assert scheduler.plan(0.0).predicted_s == pytest.approx(10e-3 + 5e-3 + 70 * 100e-6)


def test_without_real_time_a_step_ends_in_time_for_one_that_may_come() -> None:
    scheduler = make(adaptive_window=False, responsiveness_cap_s=0.08)
    scheduler.add(be(2000, 5), 0.0)
    assert 0.07 < scheduler.plan(0.0).predicted_s <= 0.08


def test_the_cap_follows_the_tightest_ttft_slo_seen() -> None:
    scheduler = make(adaptive_window=False)
    start(scheduler, rt(10, 1, ttft_slo_s=0.1))
    scheduler.add(be(2000, 5), 0.0)
    assert scheduler.plan(0.01).predicted_s <= 0.05


def test_a_chunk_of_a_real_time_prompt_leaves_decodes_in_time() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    prompt = rt(1500, 2, ttft_slo_s=2.0)
    scheduler.add(prompt, 0.0)
    plan = scheduler.plan(0.001)
    assert 0 < plan.num_new_tokens[prompt] < 1500
    assert plan.predicted_s <= 0.05


def test_a_whole_prompt_is_taken_where_chunking_is_off() -> None:
    scheduler = make(chunked_prefill=False)
    scheduler.add(be(1500, 2), 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens.values()) == [1500]


# Shares


def test_best_effort_keeps_its_share_under_any_real_time_load() -> None:
    harness = Harness(be_min_share=0.1, num_blocks=2000, max_tokens_per_step=256, verify=False, coefficients=FIT[:5])
    background = be(3000, 5)
    harness.submit(background)
    for _ in range(400):  # twice what the machine can do
        harness.submit(rt(400, 4, ttft_slo_s=0.3, tpot_slo_s=0.02))
        harness.engine.step()
        if len(harness.tokens[background.request_id]) == 5:
            return
    raise AssertionError(f"best-effort starved: {background.num_computed} of 3000 tokens")


def test_decodes_far_ahead_run_all_the_same_where_time_allows() -> None:
    """See docs/decisions/0001-real-time-runs-ahead.md."""
    scheduler = make(max_seqs_per_step=4)
    ahead = [rt(4, 50, tpot_slo_s=5.0) for _ in range(4)]
    start(scheduler, *ahead)
    scheduler.add(be(4, 5), 0.0)
    assert set(scheduler.plan(0.01).num_new_tokens) == set(ahead)


def test_requests_in_time_begin_beyond_the_places_where_decodes_can_wait() -> None:
    scheduler = make(max_seqs_per_step=4)
    ahead = [rt(10, 50, tpot_slo_s=1.0) for _ in range(4)]
    start(scheduler, *ahead)
    newcomers = [rt(10, 50, arrival_s=0.1, tpot_slo_s=1.0) for _ in range(2)]
    for request in newcomers:
        scheduler.add(request, 0.1)
    plan = step(scheduler, 0.1)
    assert list(plan.num_new_tokens)[:2] == newcomers  # the decodes have 0.9 s
    assert len(set(ahead) & set(plan.num_new_tokens)) == 2  # and take what places are left


def test_of_decodes_that_can_wait_the_oldest_ends_first() -> None:
    """By slack, the younger ones would overtake it: it has the longest time to its next token."""
    scheduler = make(max_seqs_per_step=2)
    oldest, younger = rt(10, 50, tpot_slo_s=3.0), rt(10, 50, tpot_slo_s=1.0)
    start(scheduler, oldest, younger)
    scheduler.add(newcomer := rt(10, 50, arrival_s=0.1, tpot_slo_s=1.0), 0.1)
    assert list(scheduler.plan(0.1).num_new_tokens) == [newcomer, oldest]


def test_a_decode_that_is_due_keeps_its_place() -> None:
    scheduler = make(max_seqs_per_step=4)
    ahead = [rt(10, 50, tpot_slo_s=1.0) for _ in range(4)]
    start(scheduler, *ahead)
    newcomer = rt(10, 50, arrival_s=0.99, tpot_slo_s=1.0)
    scheduler.add(newcomer, 0.99)
    assert set(scheduler.plan(0.99).num_new_tokens) == set(ahead)  # due at 1.001 s, the newcomer at 1.39 s


def test_every_schedule_beyond_the_places_keeps_the_pace() -> None:
    """Three times as many requests as places: with 60 ms between tokens and steps of 10.8 ms, each gets its turn."""
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


def far_ahead(copy_s: float = 1e-9) -> tuple[Scheduler, list[Request], float]:
    """Two requests that hold most of the slots, more than 20 tokens ahead of their schedules; and the time."""
    scheduler = make(num_blocks=12, num_host_slots=400, max_seq_len=192, latency_coefficients=(*FIT[:4], copy_s, 0.0))
    ahead = [rt(50, 100, tpot_slo_s=1.0) for _ in range(2)]
    now_s = start_as_predicted(scheduler, *ahead)
    while ahead[1].num_output < 30:
        now_s += step(scheduler, now_s).predicted_s
    return scheduler, ahead, now_s


def test_a_decode_far_ahead_is_set_aside_for_a_prompt_that_is_due() -> None:
    scheduler, ahead, now_s = far_ahead()
    newcomer = rt(60, 20, arrival_s=now_s, ttft_slo_s=0.4, tpot_slo_s=1.0)
    scheduler.add(newcomer, now_s)
    plan = step(scheduler, now_s)
    assert newcomer in plan.num_new_tokens
    (reclaim,) = plan.reclaims
    assert reclaim.request in ahead
    assert (reclaim.num_kept, reclaim.checkpoint) == (0, True)
    assert set(ahead) - {reclaim.request} < set(plan.num_new_tokens)  # the other goes on


def test_what_was_set_aside_comes_back_in_time_and_once() -> None:
    scheduler, ahead, now_s = far_ahead()
    newcomer = rt(60, 20, arrival_s=now_s, ttft_slo_s=0.4, tpot_slo_s=1.0)
    scheduler.add(newcomer, now_s)
    ended_s: dict[Request, float] = {}
    while not scheduler.is_idle:
        now_s += step(scheduler, now_s).predicted_s
        ended_s |= {request: now_s for request in ahead if request.finish_reason and request not in ended_s}
        scheduler.check_invariants()
        assert now_s < 60.0
    assert sorted(request.num_preemptions for request in ahead) == [0, 1]
    for request in ahead:
        assert request.num_output == 100
        assert request.first_token_s is not None
        assert ended_s[request] - request.first_token_s < 99 * 1.0


def test_a_burst_is_carried_by_what_decodes_are_ahead() -> None:
    """More arrives than the slots hold: all are met, nothing is lost, and none is set aside at every turn."""
    harness = Harness(
        num_blocks=32, num_host_slots=2000, max_seq_len=192, coefficients=FIT[:5], latency_coefficients=FIT
    )
    draw, requests = random.Random(3), [rt(40, 60, ttft_slo_s=0.5, tpot_slo_s=0.3) for _ in range(16)]
    for request in requests:
        harness.submit(request)
        harness.step(draw.randint(4, 10))
    harness.run()
    times_s = [harness.token_times[request.request_id] for request in requests]
    assert all(times[0] - request.arrival_s <= 0.5 for times, request in zip(times_s, requests, strict=True))
    assert all(len(times) == 60 and times[-1] - times[0] <= 59 * 0.3 for times in times_s)
    assert 0 < sum(request.num_preemptions for request in requests) <= 2 * len(requests)


def test_slow_copies_or_requests_that_are_late_already_set_nothing_aside() -> None:
    scheduler, _, now_s = far_ahead(copy_s=1e-3)  # 160 ms there and back, of steps of 10 ms
    scheduler.add(rt(60, 20, arrival_s=now_s, ttft_slo_s=0.4, tpot_slo_s=1.0), now_s)
    assert not scheduler.plan(now_s).reclaims

    scheduler, _, now_s = far_ahead()
    late, on_time = (rt(60, 20, arrival_s=s, ttft_slo_s=0.4, tpot_slo_s=1.0) for s in (now_s - 1.0, now_s))
    scheduler.add(late, now_s)
    assert not step(scheduler, now_s).reclaims
    assert list(scheduler.view.rt_waiting.relegated()) == [late]
    scheduler.add(on_time, now_s)
    assert not scheduler.plan(now_s).reclaims


def test_best_effort_is_drawn_in_as_real_time_fills_the_slots() -> None:
    def budget_s(num_rt: int) -> float:
        scheduler = make(max_seqs_per_step=20, num_blocks=208, responsiveness_cap_s=0.05)
        now_s = start_as_predicted(scheduler, *(rt(150, 50) for _ in range(num_rt)))
        step = _RealTimeStep(scheduler.view, now_s)
        step.pack_decodes()
        return step.best_effort_end_s() - step.packing.predicted_s

    assert budget_s(6) > budget_s(16) > budget_s(20)


def test_a_best_effort_decode_takes_a_free_place_where_steps_may_grow_no_longer() -> None:
    """So much arrives that real-time would fill the places at steps of hardly any length: no prompt begins."""
    scheduler = make(max_seqs_per_step=8, num_blocks=2000)
    decode, waiting = be(16, 20), be(16, 20)
    now_s = start_as_predicted(scheduler, rt(16, 20), decode)
    for _ in range(2000):
        scheduler.view.traffic.rt_demand.note(rt(1, 100, arrival_s=now_s))
    scheduler.add(waiting, now_s)
    by_places_s, by_slots_s = _RealTimeStep(scheduler.view, now_s).sustainable_s()
    assert by_places_s < scheduler.view.latency.c0 < by_slots_s
    plan = scheduler.plan(now_s)
    assert decode in plan.num_new_tokens
    assert waiting not in plan.num_new_tokens


def test_an_urgent_finish_by_deadline_overtakes_older_best_effort() -> None:
    scheduler = make(max_tokens_per_step=64, adaptive_window=False)
    older, urgent = be(64, 5), be(64, 5, deadline_s=0.12)
    for request in (older, urgent):
        scheduler.add(request, 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens) == [urgent]


def test_a_distant_finish_by_deadline_waits_its_turn() -> None:
    scheduler = make(max_tokens_per_step=64, adaptive_window=False)
    older, patient = be(64, 5), be(64, 5, deadline_s=1000.0)
    for request in (older, patient):
        scheduler.add(request, 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens) == [older]


# Memory


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


def test_a_preempted_request_waits_until_all_it_lost_fits() -> None:
    harness = Harness(num_blocks=8, max_seq_len=128)
    victim = be(110, 3)
    harness.submit(victim)
    harness.step()
    harness.submit(rt(60, 10))
    harness.step(2)
    assert victim.state is RequestState.PREEMPTED
    held = victim.num_computed
    harness.step(5)
    assert victim.num_computed <= held
    harness.run()
    assert len(harness.tokens[victim.request_id]) == 3


def test_preemptions_are_bounded_when_memory_is_always_short() -> None:
    """A full pool and a steady flow of real-time: each real-time request preempts a few times, not at every token."""
    harness = Harness(num_blocks=60, max_seq_len=400, kv_headroom_ratio=0.0)
    harness.submit(*(be(200, 50) for _ in range(10)))
    num_rt, draw = 40, random.Random(1)
    for _ in range(num_rt):
        harness.submit(rt(draw.randint(20, 100), 40))
        harness.step(8)
    harness.run()
    assert sum(harness.scheduler.stats().total_preemptions.values()) <= 3 * num_rt


@pytest.mark.parametrize("ablation", ["sharing", "checkpoints", "chunked_prefill", "adaptive_window"])
def test_every_ablation_serves_everything(ablation: str) -> None:
    harness = Harness(num_blocks=40, max_seq_len=400, max_tokens_per_step=128, **{ablation: False})
    requests = [make_one(80 + 20 * index, 20) for index in range(4) for make_one in (rt, be)]
    harness.submit(*requests)
    harness.run()
    assert all(len(harness.tokens[request.request_id]) == 20 for request in requests)


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


def test_what_outgrows_its_usual_length_is_expected_to_go_on() -> None:
    expected = expected_growth(0.1, np.array([0, 5, 10, 50]), np.array([100, 100, 100, 100]))
    assert expected.tolist() == [10, 5, 45, 25]


# Learning


def test_the_window_halves_when_a_step_was_longer_than_predicted_and_a_token_late() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    scheduler.add(be(2000, 5), 0.0)
    before = scheduler.stats().window_tokens
    step(scheduler, 0.001, end_s=0.2)
    assert scheduler.stats().window_tokens < before


def test_stats_count_requests_by_class_and_state() -> None:
    scheduler = make(max_seqs_per_step=1)
    for request in (rt(), be(), be()):
        scheduler.add(request, 0.0)
    step(scheduler, 0.0)
    counts = scheduler.stats().requests
    assert (counts[RT].num_running, counts[RT].num_waiting) == (1, 0)
    assert (counts[BE].num_running, counts[BE].num_waiting) == (0, 2)
    assert set(counts) == set(PriorityClass)
