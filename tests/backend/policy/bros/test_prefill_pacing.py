"""Best-effort prompts are spread or gathered by what any prefill costs, and the places stay full either way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from backend.core.plan import StepResult
from backend.engine.scheduler import Scheduler
from backend.policy.bros.prefill_pacing import Allowance, Pacing
from backend.policy.packing import Packing
from backend.policy.state.latency_model import LatencyModel
from backend.policy.view import StepRecord
from tests.backend.factories import be, make_scheduler_for_test, rt

NUM_PLACES = 100
STEP_S = 0.02
PLACE_S = STEP_S / NUM_PLACES
FOREVER_S = float("inf")


def ran(num_seqs: int = NUM_PLACES, num_prefill_tokens: int = 0, duration_s: float = STEP_S) -> StepRecord:
    """A step of `num_seqs` requests, the first of which may be a prefill."""
    num_tokens = num_seqs + max(0, num_prefill_tokens - 1)
    return StepRecord(duration_s, duration_s, num_tokens, 0, num_late=0, num_seqs=num_seqs)


def after(*steps: StepRecord, is_chunked: bool = True) -> Pacing:
    pacing = Pacing(NUM_PLACES, is_chunked)
    for step in steps:
        pacing.observe(step)
    return pacing


def allowance(
    pacing: Pacing,
    any_prefill_s: float,
    num_free: int = 0,
    has_prefill: bool = False,
    sustainable_s: float = FOREVER_S,
) -> Allowance:
    """Ask for a step in which real-time has 40 places and best-effort decodes leave `num_free` of the others."""
    packing = cast(Packing, SimpleNamespace(seqs_left=60, has_prefill=has_prefill))
    latency = LatencyModel((10e-3, 1e-4, 0.0, 0.0, 0.0, any_prefill_s))
    return pacing.allowance(packing, latency, 60 - num_free, sustainable_s)


# Spread


def test_with_all_places_taken_a_step_is_as_long_as_the_mean_one_and_one_place_is_kept() -> None:
    taken = allowance(after(ran()), 0.0)
    assert taken.num_places == 1
    assert taken.end_s == pytest.approx(STEP_S)


def test_empty_places_let_prompts_stretch_the_step_and_decodes_without_one_shorten_it() -> None:
    ends_s = [allowance(after(ran()), 0.0, num_free).end_s for num_free in (-20, -5, 0, 5, 10)]
    assert ends_s == sorted(set(ends_s))
    assert ends_s[0] > 0.0


def test_where_a_fifth_of_the_places_is_empty_only_the_budget_ends_the_step() -> None:
    assert allowance(after(ran()), 0.0, num_free=20).end_s == FOREVER_S


def test_the_first_step_has_a_length_too() -> None:
    assert allowance(after(), 0.0).end_s == pytest.approx(10e-3)


def test_whole_prompts_are_never_spread() -> None:
    assert allowance(after(ran(), is_chunked=False), 0.0, has_prefill=True).end_s == FOREVER_S


# Gathered


def test_prompts_join_a_prefill_and_a_few_more_than_there_are_places_for() -> None:
    pacing = after(ran())
    taken = [allowance(pacing, 2 * PLACE_S, num_free, has_prefill=True) for num_free in (3, 0, -1, -2, -9)]
    assert [each.num_places for each in taken] == [2, 2, 1, 0, 0]
    assert {each.end_s for each in taken} == {FOREVER_S}


def test_alone_they_wait_until_empty_places_have_cost_what_a_prefill_costs() -> None:
    prefill_s = 2.5 * PLACE_S
    assert allowance(after(ran()), prefill_s, num_free=0).end_s == 0.0
    assert allowance(after(ran()), prefill_s, num_free=2).end_s == 0.0
    assert allowance(after(ran()), prefill_s, num_free=3).end_s == FOREVER_S
    assert allowance(after(ran(), ran(99), ran(99)), prefill_s, num_free=1).end_s == FOREVER_S


def test_what_was_lost_is_forgotten_with_the_next_prefill() -> None:
    pacing = after(ran(), ran(90), ran(num_prefill_tokens=50))
    assert allowance(pacing, 2 * PLACE_S).end_s == 0.0


# Both


@pytest.mark.parametrize("any_prefill_s", [0.0, 10 * PLACE_S])
def test_steps_longer_than_real_time_can_stand_on_average_bound_the_next(any_prefill_s: float) -> None:
    ends_s = [
        allowance(after(ran(duration_s=step_s)), any_prefill_s, 30, has_prefill=True, sustainable_s=STEP_S).end_s
        for step_s in (0.9 * STEP_S, 1.2 * STEP_S)
    ]
    assert ends_s == [FOREVER_S, STEP_S]


def run_full(any_prefill_s: float) -> tuple[float, float]:
    """Keep 16 places busy for 400 steps that take what the model says; return how many places were taken and how many
    steps had a prefill, both as parts."""
    coefficients = (10e-3, 1e-4, 0.0, 0.0, 1e-6, any_prefill_s)
    scheduler: Scheduler = make_scheduler_for_test(
        max_seqs_per_step=16, num_blocks=4000, latency_coefficients=coefficients, budget_margin=0.0
    )
    for index in range(6):
        scheduler.add(rt(20, 2000, ttft_slo_s=1.0, tpot_slo_s=0.5, request_id=f"rt-{index}"), 0.0)
    num_added, now_s, num_taken, num_prefills = 0, 0.0, [], []
    for _ in range(400):
        while len(scheduler.view.be_waiting) < 4:
            scheduler.add(be(90, 20 + num_added % 40, request_id=f"be-{num_added}"), now_s)
            num_added += 1
        plan = scheduler.plan(now_s)
        batch = scheduler.commit(plan)
        pairs = list(zip(batch.sequences, batch.num_new_tokens, strict=True))
        tokens = [7 if seq.num_computed + num == len(seq.token_ids) else None for seq, num in pairs]
        now_s += plan.predicted_s
        scheduler.complete(batch, StepResult(tokens, plan.predicted_s), now_s)
        num_taken.append(len(pairs))
        num_prefills.append(any(num > 1 for _, num in pairs))
    scored = slice(100, None)
    return sum(num_taken[scored]) / (16 * 300), sum(num_prefills[scored]) / 300


def test_prompts_are_in_most_steps_if_a_prefill_costs_nothing_and_in_few_if_it_costs_much() -> None:
    spread, gathered = run_full(0.0), run_full(6e-3)
    assert spread[0] > 0.97
    assert gathered[0] > 0.9
    assert gathered[1] < 0.5 * spread[1]
