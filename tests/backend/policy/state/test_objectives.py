"""What one client asks for binds nobody else, where the machine could not give it anyway, or where it is long gone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.request import Request
from backend.engine.admission import is_hopeless
from backend.engine.scheduler import Scheduler
from backend.policy.state.latency_model import LatencyModel
from backend.policy.state.objectives import Objectives
from tests.backend.factories import be, make_scheduler_for_test, rt
from tests.backend.policy.driving import FIT, start_as_predicted, step

ALONE_S = 10.1e-3  # the step of a single decode, by FIT


def make(**knobs: object) -> Scheduler:
    values = {"latency_coefficients": FIT, "budget_margin": 0.0, "num_blocks": 2000}
    return make_scheduler_for_test(**{**values, **knobs})


def noted(*requests: Request) -> Objectives:
    """Return the objectives of requests that come at their arrivals to a machine with nothing to do."""
    objectives = Objectives()
    for request in requests:
        objectives.note(request, LatencyModel(FIT), request.arrival_s, FIT[0])
    return objectives


def be_step_s(scheduler: Scheduler, now_s: float) -> float:
    """Return how long a step with a best-effort prompt of any length would be."""
    scheduler.add(be(2040, 5), now_s)
    return scheduler.plan(now_s).predicted_s


# Remembered objectives


def test_the_shortest_wait_is_forgotten_within_seconds() -> None:
    objectives = noted(rt(ttft_slo_s=0.3, arrival_s=0.0), rt(ttft_slo_s=0.1, arrival_s=1.0))
    assert [objectives.recent(now_s).shortest_wait_s for now_s in (1.0, 4.0, 7.0)] == [0.05, 0.05, math.inf]


def test_a_looser_slo_takes_the_place_of_one_that_is_gone() -> None:
    objectives = noted(rt(ttft_slo_s=0.1), *(rt(ttft_slo_s=0.4, arrival_s=float(index)) for index in range(1, 10)))
    assert objectives.recent(9.0).shortest_wait_s == 0.2


def test_the_tightest_ttft_slo_is_forgotten_with_its_wait() -> None:
    objectives = noted(rt(2500, ttft_slo_s=0.4, arrival_s=0.0), rt(4, ttft_slo_s=0.5, arrival_s=1.0))
    assert [objectives.recent(now_s).shortest_ttft_s for now_s in (1.0, 7.0)] == [0.4, math.inf]


@pytest.mark.parametrize("ttft_slo_s", [1e-6, 0.001, 0.01, 0.013])
def test_a_ttft_slo_below_a_step_alone_is_not_counted(ttft_slo_s: float) -> None:
    hopeless = rt(32, ttft_slo_s=ttft_slo_s)  # alone it takes 13.2 ms
    assert is_hopeless(hopeless, LatencyModel(FIT))
    assert noted(hopeless).recent(0.0).shortest_wait_s == math.inf


@pytest.mark.parametrize(("knob", "slo_s"), [("tpot_slo_s", 0.01), ("itl_slo_s", 0.01)])
def test_a_pace_below_a_step_alone_is_hopeless(knob: str, slo_s: float) -> None:
    assert is_hopeless(rt(32, ttft_slo_s=1.0, **{knob: slo_s}), LatencyModel(FIT))
    assert not is_hopeless(rt(32, ttft_slo_s=1.0, **{knob: 1.1 * ALONE_S}), LatencyModel(FIT))


def test_one_odd_request_hardly_moves_what_is_usual_and_dozens_do() -> None:
    for odd_s in (0.05, 1e4):
        assert noted(rt(4, ttft_slo_s=odd_s)).usual_ttft_s == pytest.approx(0.5, rel=0.11)
    for usual_s in (0.05, 2.0):
        assert noted(*(rt(4, ttft_slo_s=usual_s) for _ in range(60))).usual_ttft_s == pytest.approx(usual_s, rel=0.1)


def test_a_loose_ttft_slo_lets_nobody_wait_for_long() -> None:
    objectives = noted(rt(4, ttft_slo_s=1e4))
    assert objectives.wait_s(0.0, 0.01) <= 0.55
    assert objectives.wait_s(60.0, 0.01) <= 0.275
    assert objectives.next_ttft_s(0.0) == objectives.next_ttft_s(60.0) == objectives.loosest_ttft_s <= 1.1


def test_while_nobody_comes_the_wait_is_at_least_some_steps() -> None:
    assert noted(rt(4, ttft_slo_s=0.5)).wait_s(60.0, 0.01) == 0.25
    assert noted(rt(4, ttft_slo_s=0.5)).wait_s(60.0, 1.0) == 1.0


def test_a_long_prompt_can_wait_for_less_than_half_of_its_slo() -> None:
    assert noted(rt(2500, ttft_slo_s=0.4)).recent(0.0).shortest_wait_s == pytest.approx(0.4 - 0.26)
    assert noted(rt(3850, ttft_slo_s=0.4)).recent(0.0).shortest_wait_s == pytest.approx(0.4 - 0.395)


@pytest.mark.parametrize(("ttft_slo_s", "expected"), [(0.001, True), (0.4, False)])
def test_a_hopeless_request_is_marked_when_it_comes(ttft_slo_s: float, expected: bool) -> None:
    scheduler, request = make(), rt(32, ttft_slo_s=ttft_slo_s)
    scheduler.add(request, 0.0)
    assert request.is_hopeless is expected


# The cap


@pytest.mark.parametrize("ttft_slo_s", [1e-6, 0.001, 0.01])
def test_a_hopeless_ttft_slo_changes_nothing_for_best_effort(ttft_slo_s: float) -> None:
    scheduler, quiet = make(), make()
    start_as_predicted(scheduler, rt(10, 1, ttft_slo_s=ttft_slo_s))
    assert be_step_s(scheduler, 0.1) == pytest.approx(be_step_s(quiet, 0.1), rel=0.01)


def test_best_effort_recovers_within_seconds_of_a_tight_ttft_slo() -> None:
    scheduler = make()
    start_as_predicted(scheduler, rt(10, 1, ttft_slo_s=0.05))
    assert be_step_s(scheduler, 0.1) <= 0.025
    assert scheduler.plan(7.0).predicted_s > 0.19


def test_what_is_usual_binds_best_effort_while_nobody_comes_but_leaves_it_most_of_a_step() -> None:
    scheduler = make()
    start_as_predicted(scheduler, *(rt(4, 1, ttft_slo_s=0.05) for _ in range(60)))
    assert be_step_s(scheduler, 60.0) == pytest.approx(8 * FIT[0], rel=0.02)


def test_the_longest_prefill_counts_one_prompt_in_front_but_no_more_than_the_ttft_slo() -> None:
    """Alone, 400 tokens take 50 ms."""
    assert noted(rt(400, ttft_slo_s=0.4)).recent(0.0).longest_prefill_s == pytest.approx(0.1)
    assert noted(rt(400, ttft_slo_s=0.07)).recent(0.0).longest_prefill_s == 0.07
    assert noted(rt(400, ttft_slo_s=0.04)).recent(0.0).longest_prefill_s == 0.0


def test_a_tight_ttft_slo_does_not_hold_up_the_prompts_of_others() -> None:
    """One asked for half of a step of these decodes; the others have 0.4 s."""
    scheduler = make(max_seqs_per_step=200)
    tight = rt(10, 1, ttft_slo_s=0.022)
    now_s = start_as_predicted(scheduler, tight, *(rt(10, 90) for _ in range(100)))  # 20 ms a step
    prompt = rt(400, 2, arrival_s=now_s, ttft_slo_s=0.4)
    scheduler.add(prompt, now_s)
    assert scheduler.view.traffic.rt_objectives.recent(now_s).shortest_wait_s == pytest.approx(0.011)
    assert step(scheduler, now_s).num_new_tokens[prompt] >= 200  # as long as the step of the decodes


# Decodes


def test_a_hopeless_pace_binds_no_budget() -> None:
    scheduler = make()
    start_as_predicted(scheduler, rt(10, 50, tpot_slo_s=0.005), rt(10, 50, tpot_slo_s=0.2))
    assert be_step_s(scheduler, 0.01) > 0.1  # 0.9 of what the other leaves


def test_a_pace_that_cannot_be_kept_beside_the_others_does_not_stop_them() -> None:
    """A step of all takes 13.1 ms. The one that asks for 10.5 ms could have it alone."""
    scheduler = make(max_seqs_per_step=64)
    tight, others = rt(10, 50, tpot_slo_s=0.0105), [rt(10, 50) for _ in range(30)]
    start_as_predicted(scheduler, tight, *others)
    prompt = rt(100, 2, arrival_s=0.02)
    scheduler.add(prompt, 0.02)
    plan = scheduler.plan(0.02)
    assert {tight, prompt, *others} == set(plan.num_new_tokens)
    assert plan.num_new_tokens[prompt] == 100


def test_a_pace_that_most_ask_for_still_binds() -> None:
    scheduler = make()
    now_s = start_as_predicted(scheduler, *(rt(10, 4, tpot_slo_s=0.03) for _ in range(10)))
    scheduler.add(rt(2000, 2, arrival_s=now_s, ttft_slo_s=2.0), now_s)
    assert scheduler.plan(now_s).predicted_s <= 0.03


def test_a_hopeless_request_is_served_behind_those_on_time_and_ahead_of_best_effort() -> None:
    scheduler = make(max_tokens_per_step=64)
    best_effort, hopeless, on_time = be(32, 2), rt(32, 2, ttft_slo_s=1e-3), rt(32, 2)
    for request in (best_effort, hopeless, on_time):
        scheduler.add(request, 0.0)
    assert list(scheduler.plan(0.0).num_new_tokens) == [on_time, hopeless]


_SLOS_S = st.floats(1e-5, 1.0)


@given(slos=st.lists(st.tuples(_SLOS_S, _SLOS_S), min_size=1, max_size=20), late_s=st.floats(0.0, 0.5))
def test_no_budget_is_below_one_step_of_all_decodes(slos: list[tuple[float, float]], late_s: float) -> None:
    scheduler = make(max_seqs_per_step=32)
    decodes = [rt(4, 50, ttft_slo_s=ttft_s, tpot_slo_s=tpot_s) for ttft_s, tpot_s in slos]
    start_as_predicted(scheduler, *decodes)
    plan = scheduler.plan(0.001 + late_s)
    assert set(plan.num_new_tokens) == set(decodes)
    assert plan.budget_s >= scheduler.view.table.rt_step_s(scheduler.view.latency)
