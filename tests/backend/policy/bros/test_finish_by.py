"""Finish-by deadlines: whatever can be met is begun in time, what cannot be met hinders nothing and finishes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.request import Request
from backend.policy.bros.finish_by import Job, urgent
from tests.backend.factories import Harness, be, rt

FIT = (2e-3, 100e-6, 0.0, 0.0, 1e-6)
JOBS = st.lists(st.builds(Job, st.integers(1, 40), st.integers(1, 12), st.integers(0, 5)), max_size=7)


@given(JOBS)
def test_whoever_waits_until_something_is_urgent_meets_all_that_due_times_in_order_can_meet(jobs: list[Job]) -> None:
    now_s, met, possible = 0.0, 0, 0
    for job in sorted(jobs, key=lambda job: job.due_s):
        if now_s + job.serial_s <= job.due_s:
            now_s += job.serial_s
            possible += 1
    now_s, last_s = 0.0, max((job.deadline_s for job in jobs), default=0.0)
    while now_s <= last_s:
        chosen = urgent(jobs, now_s)
        if not chosen:
            now_s += 0.05
            continue
        job = jobs.pop(chosen[0])
        now_s += job.serial_s
        met += now_s <= job.due_s
    assert met >= possible


def test_a_job_that_cannot_end_in_time_makes_no_other_late() -> None:
    jobs = [Job(2.0, 1.0, 0.0), Job(2.5, 2.0, 0.0), Job(3.0, 1.0, 0.0)]
    assert urgent(jobs, 0.9) == [0, 2]


def test_nothing_is_urgent_long_before_its_deadline() -> None:
    assert urgent([Job(100.0, 1.0, 1.0)] * 5, 0.0) == []


def test_many_deadlines_at_one_time_are_begun_early_enough_for_all() -> None:
    jobs = [Job(130.0, 1.0, 1.0)] * 60
    assert urgent(jobs, 5.0) == []
    assert len(urgent(jobs, 30.0)) == 60


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "num_blocks", "within_s"),
    [(300, 10, 200, 0.5), (300, 10, 200, 1.0), (300, 10, 60, 0.5), (300, 10, 60, 1.0), (500, 80, 200, 1.0)],
)
def test_whoever_always_names_near_deadlines_delays_others_within_bounds(
    num_prompt: int, max_tokens: int, num_blocks: int, within_s: float
) -> None:
    """Without a share for those who name none, they would never end."""
    alone_s, beside_s = (time_beside(each, num_blocks, num_prompt, max_tokens) for each in (None, within_s))
    assert beside_s <= 2.0 * alone_s


def time_beside(within_s: float | None, num_blocks: int, num_prompt: int, max_tokens: int) -> float:
    """Return what a request without a deadline takes beside 40 open ones, each due in about `within_s`."""
    harness = Harness(num_blocks=num_blocks, max_seq_len=600, coefficients=FIT, verify=False)
    draw, now_s = random.Random(0), harness.clock.now_s

    def another() -> Request:
        deadline_s = None if within_s is None else now_s() + within_s * draw.uniform(0.7, 1.3)
        request = be(num_prompt, max_tokens, deadline_s=deadline_s)
        harness.submit(request)
        return request

    crowd = [another() for _ in range(40)]
    harness.step(50)
    other = be(300, 50)
    harness.submit(other)
    while not harness.ends[other.request_id]:
        assert now_s() < other.arrival_s + 100.0, "it is never served"
        harness.step()
        crowd = [another() if harness.ends[request.request_id] else request for request in crowd]
    return now_s() - other.arrival_s


def met(harness: Harness, requests: Sequence[Request]) -> list[bool]:
    """Return for each whether its last token came by its deadline."""
    ends = [harness.token_times[request.request_id][-1] for request in requests]
    return [end_s <= (request.deadline_s or 0.0) for end_s, request in zip(ends, requests, strict=True)]


@pytest.mark.parametrize("num_blocks", [2000, 200])
def test_several_deadlines_are_met_behind_a_backlog_and_beside_real_time(num_blocks: int) -> None:
    """Some fall together, some are tight, one cannot be met; memory is ample or short."""
    harness = Harness(num_blocks=num_blocks, max_seq_len=600, coefficients=FIT, verify=False)
    harness.submit(*(be(500, 20) for _ in range(60)))
    harness.step(5)
    draw, start_s = random.Random(0), harness.clock.now_s()
    due = [be(300, 10, deadline_s=start_s + at) for at in (3.0, 1.5, 1.5, 1.5, 1.0, 2.0, 2.0, 2.0)]
    lost = be(300, 10, deadline_s=start_s + 0.02)
    real_time = [rt(draw.randint(20, 200), 10, ttft_slo_s=0.3, tpot_slo_s=0.05) for _ in range(30)]
    harness.submit(lost, *due)
    for request in real_time:
        harness.submit(request)
        harness.step(3)
    harness.run()
    assert all(met(harness, due))
    assert met(harness, [lost]) == [False]
    assert len(harness.tokens[lost.request_id]) == 10
    ttft_s = [harness.token_times[request.request_id][0] - request.arrival_s for request in real_time]
    assert max(ttft_s) <= 0.3
