"""Best-effort prompts are spread over the steps, so that the batch slots stay full."""

from __future__ import annotations

import pytest

from backend.policy.bros.prefill_pacing import Pacing
from backend.policy.view import StepRecord
from tests.backend.factories import be, rt
from tests.backend.policy.driving import make, step

NUM_SLOTS = 100
STEP_S = 0.02
FOREVER_S = float("inf")


def after(*durations_s: float, is_chunked: bool = True) -> Pacing:
    pacing = Pacing(NUM_SLOTS, is_chunked)
    for duration_s in durations_s:
        pacing.observe(StepRecord(duration_s, duration_s, NUM_SLOTS, 0))
    return pacing


def end_s(pacing: Pacing, num_free: int = 0, sustainable_s: float = FOREVER_S) -> float:
    return pacing.prefill_end_s(num_free, 10e-3, sustainable_s)


def test_with_all_batch_slots_taken_a_step_is_as_long_as_the_mean_one() -> None:
    assert end_s(after(STEP_S)) == pytest.approx(STEP_S)


def test_empty_batch_slots_stretch_the_step_and_decodes_without_one_shorten_it() -> None:
    ends_s = [end_s(after(STEP_S), num_free) for num_free in (-20, -5, 0, 5, 10)]
    assert ends_s == sorted(set(ends_s))
    assert ends_s[0] > 0.0


def test_where_a_fifth_of_the_batch_slots_is_empty_only_the_budget_ends_the_step() -> None:
    assert end_s(after(STEP_S), num_free=20) == FOREVER_S


def test_the_first_step_is_paced_by_an_empty_one() -> None:
    assert end_s(after()) == pytest.approx(10e-3)


def test_whole_prompts_are_never_spread() -> None:
    assert end_s(after(STEP_S, is_chunked=False)) == FOREVER_S


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_mean_step_longer_than_real_time_can_stand_bounds_the_next(is_chunked: bool) -> None:
    ends_s = [end_s(after(s, is_chunked=is_chunked), 30, sustainable_s=STEP_S) for s in (0.9 * STEP_S, 1.2 * STEP_S)]
    assert ends_s == [FOREVER_S, STEP_S]


@pytest.mark.parametrize("any_prefill_s", [0.0, 6e-3])
def test_the_batch_slots_stay_full(any_prefill_s: float) -> None:
    scheduler = make(
        max_seqs_per_step=16, num_blocks=4000, latency_coefficients=(10e-3, 1e-4, 0.0, 0.0, 1e-6, any_prefill_s)
    )
    for _ in range(6):
        scheduler.add(rt(20, 2000, ttft_slo_s=1.0, tpot_slo_s=0.5), 0.0)
    num_added, now_s, num_taken = 0, 0.0, []
    for _ in range(300):
        while len(scheduler.view.be_waiting) < 4:
            scheduler.add(be(90, 20 + num_added % 40), now_s)
            num_added += 1
        plan = step(scheduler, now_s)
        now_s += plan.predicted_s
        num_taken.append(len(plan.num_new_tokens))
    assert sum(num_taken[100:]) > 0.9 * 16 * 200
