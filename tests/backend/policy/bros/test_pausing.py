"""Decodes far ahead of their schedules pause for prompts that are due, and come back in time."""

from __future__ import annotations

import random

from backend.core.request import Request
from backend.engine.scheduler import Scheduler
from tests.backend.factories import Harness, rt
from tests.backend.policy.driving import FIT, make, start_as_predicted, step


def far_ahead(**knobs: object) -> tuple[Scheduler, list[Request], float]:
    """Two requests that hold most of the slots, more than 20 tokens ahead of their schedules; and the time."""
    scheduler = make(num_blocks=12, num_host_slots=400, max_seq_len=192, latency_coefficients=FIT, **knobs)
    ahead = [rt(50, 100, tpot_slo_s=1.0) for _ in range(2)]
    now_s = start_as_predicted(scheduler, *ahead)
    while ahead[1].num_output < 30:
        now_s += step(scheduler, now_s).predicted_s
    return scheduler, ahead, now_s


def test_a_decode_far_ahead_is_paused_for_a_prompt_that_is_due() -> None:
    scheduler, ahead, now_s = far_ahead()
    newcomer = rt(60, 20, arrival_s=now_s, ttft_slo_s=0.4, tpot_slo_s=1.0)
    scheduler.add(newcomer, now_s)
    plan = step(scheduler, now_s)
    assert newcomer in plan.num_new_tokens
    (reclaim,) = plan.reclaims
    assert reclaim.request in ahead
    assert (reclaim.num_kept, reclaim.checkpoint) == (0, True)
    assert set(ahead) - {reclaim.request} < set(plan.num_new_tokens)  # the other goes on


def test_what_was_paused_comes_back_in_time_and_once() -> None:
    scheduler, ahead, now_s = far_ahead()
    newcomer = rt(60, 20, arrival_s=now_s, ttft_slo_s=0.4, tpot_slo_s=1.0)
    scheduler.add(newcomer, now_s)
    ended_s: dict[Request, float] = {}
    while not scheduler.is_idle:
        now_s += step(scheduler, now_s).predicted_s
        ended_s |= {request: now_s for request in ahead if request.finish_reason and request not in ended_s}
        scheduler.check_invariants()
        assert now_s < 60.0
    assert {request.num_preemptions for request in ahead} in ({0, 1}, {1})
    for request in ahead:
        assert request.num_output == 100
        assert request.first_token_s is not None
        assert ended_s[request] - request.first_token_s < 99 * 1.0


def test_a_burst_is_carried_by_what_decodes_are_ahead() -> None:
    """More arrives than the slots hold: all are met, nothing is lost, and none pauses at every turn."""
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


def test_a_machine_that_copies_nothing_or_requests_that_are_late_already_pause_nothing() -> None:
    scheduler, _, now_s = far_ahead(checkpoints=False)
    scheduler.add(rt(60, 20, arrival_s=now_s, ttft_slo_s=0.4, tpot_slo_s=1.0), now_s)
    assert not scheduler.plan(now_s).reclaims

    scheduler, _, now_s = far_ahead()
    late, on_time = (rt(60, 20, arrival_s=s, ttft_slo_s=0.4, tpot_slo_s=1.0) for s in (now_s - 1.0, now_s))
    scheduler.add(late, now_s)
    assert not step(scheduler, now_s).reclaims
    assert list(scheduler.view.rt_waiting.relegated()) == [late]
    scheduler.add(on_time, now_s)
    assert not scheduler.plan(now_s).reclaims
