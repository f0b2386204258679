"""Finish-by deadlines: whatever can be met is begun in time, what cannot be met hinders nothing and finishes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.request import Request
from backend.policy.bros.finish_by import Job, feasible, urgent
from tests.backend.factories import Harness, be, rt

FIT = (2e-3, 100e-6, 0.0, 0.0, 1e-6)
JOBS = st.lists(st.builds(Job, st.integers(1, 40), st.integers(1, 12), st.integers(0, 5)), max_size=7)


def are_met(jobs: Sequence[Job], order: Sequence[int], now_s: float = 0.0) -> bool:
    """Whether `jobs`, begun one after the other in `order`, all end in time."""
    for index in order:
        now_s += jobs[index].serial_s
        if now_s + jobs[index].parallel_s > jobs[index].deadline_s:
            return False
    return True


@given(JOBS)
def test_no_larger_set_of_jobs_can_end_in_time(jobs: list[Job]) -> None:
    """The slow twin tries all sets, each in order of due time."""
    order = sorted(range(len(jobs)), key=lambda index: jobs[index].due_s)
    subsets = (subset for size in range(len(jobs) + 1) for subset in combinations(order, size))
    most = max(len(subset) for subset in subsets if are_met(jobs, subset))
    chosen = feasible(jobs, 0.0)
    assert are_met(jobs, chosen)
    assert len(chosen) == most


@given(JOBS)
def test_whoever_waits_until_something_is_urgent_meets_all_that_can_be_met(jobs: list[Job]) -> None:
    now_s, met = 0.0, 0
    jobs = [jobs[index] for index in feasible(jobs, 0.0)]
    num_jobs = len(jobs)
    while jobs:
        chosen = urgent(jobs, now_s)
        if not chosen:
            now_s += 0.05
            continue
        job = jobs.pop(chosen[0])
        now_s += job.serial_s
        met += now_s <= job.due_s
    assert met == num_jobs


def test_nothing_is_urgent_long_before_its_deadline() -> None:
    assert urgent([Job(100.0, 1.0, 1.0)] * 5, 0.0) == []


def test_many_deadlines_at_one_time_are_begun_early_enough_for_all() -> None:
    jobs = [Job(100.0, 1.0, 1.0)] * 60
    assert urgent(jobs, 5.0) == []
    assert len(urgent(jobs, 30.0)) == 60


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


def test_a_long_queue_of_deadlines_is_begun_before_its_first_is_due() -> None:
    """More wait than a step looks at; together they need most of the time that is left."""
    harness = Harness(num_blocks=4000, max_seq_len=600, coefficients=FIT, verify=False, max_seqs_per_step=64)
    harness.submit(*(be(500, 5) for _ in range(100)))
    due = [be(100, 2, deadline_s=6.0) for _ in range(300)]  # 3 s of work; the backlog before them: 5 s
    harness.submit(*due)
    harness.run()
    assert all(met(harness, due))
