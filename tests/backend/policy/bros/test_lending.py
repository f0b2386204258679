"""Decodes that can catch up before they end lend time to a real-time prompt."""

from __future__ import annotations

import pytest

from backend.engine.scheduler import Scheduler
from backend.policy.bros.lending import longest_step_s
from tests.backend.factories import rt
from tests.backend.policy.driving import make, start, start_as_predicted, step

NOW_S = 0.001


def longest(scheduler: Scheduler, *, use: float = 1.0, output_ratio: float = 1.0, odd_s: float = 0.0) -> float:
    table = scheduler.view.table
    rows = table.groups().rt_decodes
    slack_s = use * (table.deadline_s[rows] - NOW_S)
    return longest_step_s(table.counts, table.times, rows, slack_s, NOW_S, use, output_ratio, 0.01, odd_s)


def test_a_part_of_the_time_to_catch_up_is_lent() -> None:
    """One of 50 tokens is out. After the next, 48 are to come, and each gains 40 ms."""
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    slack_s = float(scheduler.view.table.deadline_s[0]) - NOW_S
    assert longest(scheduler) == pytest.approx(slack_s + 0.25 * 48 * 0.04)
    assert longest(scheduler, output_ratio=0.5) == pytest.approx(slack_s + 0.25 * 23 * 0.04)
    assert longest(scheduler, output_ratio=0.02) == pytest.approx(slack_s), "it usually ends by now"
    assert longest(scheduler, use=0.8) == pytest.approx(0.8 * slack_s + 0.25 * 48 * 0.03)


def test_the_decode_that_can_lend_least_counts() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05), rt(10, 4, tpot_slo_s=0.05))
    slack_s = float(scheduler.view.table.deadline_s[1]) - NOW_S
    assert longest(scheduler) == pytest.approx(slack_s + 0.25 * 2 * 0.04)


def test_an_inter_token_objective_lends_nothing() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05, itl_slo_s=0.1))
    last_s = float(scheduler.view.table.last_token_s[0])
    assert longest(scheduler) == pytest.approx(last_s + 0.1 - NOW_S)


def test_a_pace_that_few_ask_for_binds_no_prompt() -> None:
    scheduler = make()
    start(scheduler, rt(10, 4, tpot_slo_s=0.005), rt(10, 4, tpot_slo_s=0.015), *(rt(10, 4) for _ in range(2)))
    usual_s = float(scheduler.view.table.deadline_s[2]) - NOW_S + 0.25 * 2 * (0.2 - 0.01)
    assert longest(scheduler, odd_s=0.02) == pytest.approx(usual_s)
    assert longest(scheduler, odd_s=1.0) < 0.1, "most ask for less"
    assert longest(scheduler) < 0.1


@pytest.mark.parametrize("lends", [True, False])
def test_a_long_prompt_is_in_time_beside_a_decode_that_lends(lends: bool) -> None:
    """Its 1,500 tokens take 160 ms at once, and 240 ms in steps that are no longer than the decode's 30 ms."""
    scheduler = make(num_blocks=400)
    scheduler.view.traffic.rt_output_ratio = 1.0
    decode = rt(10, 60, tpot_slo_s=0.03, itl_slo_s=None if lends else 0.03)
    now_s = start_as_predicted(scheduler, decode)
    prompt, first_s = rt(1500, 1, arrival_s=now_s, ttft_slo_s=0.2), now_s
    scheduler.add(prompt, now_s)
    while not prompt.num_output:
        now_s += step(scheduler, now_s).predicted_s
    assert (now_s - prompt.arrival_s <= 0.2) is lends
    while decode.num_output < 60:
        now_s += step(scheduler, now_s).predicted_s
    assert (now_s - first_s) / 59 <= 0.03
