"""Best-effort prompts are spread over the steps, so that the batch slots stay full."""

from __future__ import annotations

import pytest

from backend.engine.scheduler import Scheduler
from backend.policy.bros.budgets import Budgets
from backend.policy.packing import Packing
from tests.backend.factories import be, rt
from tests.backend.policy.driving import make, start, step

NUM_SLOTS = 100
STEP_S = 0.02
FOREVER_S = float("inf")


def after(step_s: float, num_decodes: int = 0, **knobs: object) -> Scheduler:
    """A scheduler whose mean step took `step_s`, with best-effort decodes."""
    scheduler = make(max_seqs_per_step=NUM_SLOTS, num_blocks=2000, **knobs)
    start(scheduler, *(be(4, 50) for _ in range(num_decodes)))
    scheduler.view.traffic.step_s = step_s
    return scheduler


def end_s(scheduler: Scheduler, num_taken: int = 0) -> float:
    """Return when prefills are to end if real-time took `num_taken` batch slots."""
    packing = Packing(scheduler.view)
    packing.seqs_left -= num_taken
    return Budgets(scheduler.view, packing.groups.rt_decodes, 1.0).prefill_end_s(packing)


def test_with_all_batch_slots_taken_a_step_is_as_long_as_the_mean_one() -> None:
    assert end_s(after(STEP_S), NUM_SLOTS) == pytest.approx(STEP_S)


def test_empty_batch_slots_stretch_the_step_and_decodes_without_one_shorten_it() -> None:
    scheduler = after(STEP_S, num_decodes=20)
    ends_s = [end_s(scheduler, num_taken) for num_taken in (100, 85, 80, 75, 70)]
    assert ends_s == sorted(set(ends_s))
    assert ends_s[2] == pytest.approx(STEP_S)


def test_where_a_fifth_of_the_batch_slots_is_empty_only_the_budget_ends_the_step() -> None:
    assert end_s(after(STEP_S), NUM_SLOTS - 20) == FOREVER_S


def test_whole_prompts_are_never_spread() -> None:
    assert end_s(after(STEP_S, chunked_prefill=False), NUM_SLOTS) == FOREVER_S


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_mean_step_longer_than_real_time_can_stand_bounds_the_next(is_chunked: bool) -> None:
    scheduler = after(STEP_S, chunked_prefill=is_chunked)
    for _ in range(1000):
        scheduler.view.traffic.rt_arrivals.note(rt(1, 100, arrival_s=1.0))
    view, packing = scheduler.view, Packing(scheduler.view)
    sustainable_s = Budgets(view, packing.groups.rt_decodes, 1.0).sustainable_s(packing.predicted_s).by_batch_slots
    ends_s = []
    for step_s in (0.9 * sustainable_s, 1.2 * sustainable_s):
        view.traffic.step_s = step_s
        ends_s.append(end_s(scheduler))
    assert ends_s == [FOREVER_S, sustainable_s]


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
