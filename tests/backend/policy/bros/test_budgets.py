"""How long a step may take."""

from __future__ import annotations

import pytest

from backend.engine.scheduler import Scheduler
from backend.policy.bros.budgets import Budgets
from tests.backend.factories import be, rt
from tests.backend.policy.driving import make, start, start_as_predicted


def test_best_effort_fills_the_step_up_to_the_tightest_deadline() -> None:
    scheduler = make(responsiveness_cap_s=1.0)
    start(scheduler, rt(10, 50, tpot_slo_s=0.2))
    scheduler.add(be(2000, 5), 0.0)
    plan = scheduler.plan(0.001)  # the next token is due at 201 ms
    assert 0.8 * 0.2 < plan.predicted_s <= 0.2


def test_without_real_time_a_step_ends_in_time_for_one_that_may_come() -> None:
    scheduler = make(responsiveness_cap_s=0.08)
    scheduler.add(be(2000, 5), 0.0)
    assert 0.07 < scheduler.plan(0.0).predicted_s <= 0.08


def test_the_cap_follows_the_tightest_ttft_slo_seen() -> None:
    scheduler = make()
    start(scheduler, rt(10, 1, ttft_slo_s=0.1))
    scheduler.add(be(2000, 5), 0.0)
    assert scheduler.plan(0.01).predicted_s <= 0.05


def test_a_chunk_of_a_real_time_prompt_leaves_decodes_in_time_that_ask_for_it() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05, itl_slo_s=0.05))
    prompt = rt(1500, 2, ttft_slo_s=2.0)
    scheduler.add(prompt, 0.0)
    plan = scheduler.plan(0.001)
    assert 0 < plan.num_new_tokens[prompt] < 1500
    assert plan.predicted_s <= 0.05


def budgets(scheduler: Scheduler, now_s: float) -> Budgets:
    return Budgets(scheduler.view, scheduler.view.table.groups().rt_decodes, now_s)


def test_a_late_decode_asks_for_steps_in_which_it_catches_up() -> None:
    scheduler = make(responsiveness_cap_s=1.0)
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    late = budgets(scheduler, 0.2)
    _, is_late = late.heed_decodes()
    assert is_late.all()
    assert late.in_time_s == pytest.approx(0.9 * 0.05)


def test_late_and_best_effort_work_leave_a_part_of_the_slack() -> None:
    scheduler = make(responsiveness_cap_s=1.0)
    start(scheduler, rt(10, 50, tpot_slo_s=0.3))
    step_budgets = budgets(scheduler, 0.001)
    for _ in range(20):
        scheduler.view.traffic.rt_lengths.note(50, 50)
    step_budgets.heed_decodes()
    assert step_budgets.in_time_s > step_budgets.pace_s == pytest.approx(0.3)
    assert step_budgets.late_s == pytest.approx(0.9 * 0.3)
    assert step_budgets.best_effort_end_s(0.011) == pytest.approx(0.9 * 0.3)


def test_a_prompt_borrows_if_it_is_due_before_any_that_may_come() -> None:
    scheduler = make(responsiveness_cap_s=0.08)
    start(scheduler, rt(10, 50, ttft_slo_s=0.2, tpot_slo_s=0.3))
    for _ in range(20):
        scheduler.view.traffic.rt_lengths.note(50, 50)
    step_budgets = budgets(scheduler, 0.001)
    step_budgets.heed_decodes()
    assert step_budgets.prompt_s(0.2) == step_budgets.in_time_s > 1.0
    assert step_budgets.prompt_s(0.202) == step_budgets.pace_s == 0.08
    assert budgets(scheduler, 9.0).prompt_s(1e9) == budgets(scheduler, 9.0).pace_s, "though nobody came for seconds"


def test_arrivals_that_would_fill_the_kv_slots_bound_the_step_that_best_effort_stretches() -> None:
    def end_s(num_arrivals: int) -> float:
        scheduler = make(num_blocks=200, responsiveness_cap_s=1.0)
        for _ in range(num_arrivals):
            scheduler.view.traffic.rt_arrivals.note(rt(100, 100, arrival_s=1.0))
        return budgets(scheduler, 1.0).best_effort_end_s(0.01)

    assert end_s(0) == 1.0
    assert 1.0 > end_s(20) > end_s(40) > end_s(400) == 0.01


def test_a_margin_leaves_a_part_of_each_slack_unplanned() -> None:
    scheduler = make(responsiveness_cap_s=1.0, budget_margin=0.2)
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    step_budgets = budgets(scheduler, 0.001)
    step_budgets.heed_decodes()
    assert step_budgets.pace_s == pytest.approx(0.8 * 0.05)


def test_many_arrivals_bound_the_mean_step_by_the_batch_slots() -> None:
    scheduler = make(max_seqs_per_step=8, num_blocks=2000)
    for _ in range(2000):
        scheduler.view.traffic.rt_arrivals.note(rt(1, 100, arrival_s=1.0))
    by_batch_slots_s, by_kv_slots_s = budgets(scheduler, 1.0).sustainable_s(0.01)
    assert by_batch_slots_s < scheduler.view.latency.c0 < by_kv_slots_s


def test_the_margin_grows_with_what_the_model_overshoots() -> None:
    scheduler = make(responsiveness_cap_s=1.0)
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    scheduler.view.latency.overshoot_ratio = 0.1
    assert budgets(scheduler, 0.001).use == pytest.approx(1.0 / 1.1)


def test_the_cap_shrinks_by_what_the_model_overshoots() -> None:
    scheduler = make(responsiveness_cap_s=0.08)
    scheduler.add(be(2000, 5), 0.0)
    scheduler.view.latency.overshoot_ratio = 0.25
    assert 0.06 < scheduler.plan(0.0).predicted_s <= 0.08 / 1.25


def test_best_effort_waits_until_half_of_the_decodes_can_wait_for_a_prompt() -> None:
    """The longest prompt takes 20 ms alone, and so does one in front of it: of 60 ms, they leave 20 ms."""
    scheduler = make(responsiveness_cap_s=1.0)
    now_s = start_as_predicted(scheduler, *(rt(100, 50, tpot_slo_s=0.06) for _ in range(5)))
    step_budgets = budgets(scheduler, now_s)
    step_budgets.heed_decodes()
    assert step_budgets.best_effort_end_s(0.0) == pytest.approx(0.02, rel=0.02)
    assert step_budgets.late_s == pytest.approx(0.9 * 0.06)
