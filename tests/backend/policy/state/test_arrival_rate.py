"""The arrival rate is used by Little's law: what arrives per second, times how long it stays."""

from __future__ import annotations

import pytest

from backend.policy.state.arrival_rate import ArrivalRate
from tests.backend.factories import rt


def steady(rate_per_s: float, num_prompt: int, max_tokens: int, until_s: float) -> ArrivalRate:
    """Return the demand of requests that arrive at equal distances until `until_s`."""
    demand = ArrivalRate()
    for index in range(int(rate_per_s * until_s)):
        demand.note(rt(num_prompt, max_tokens, arrival_s=index / rate_per_s))
    return demand


@pytest.mark.parametrize("until_s", [10.0, 200.0])
def test_a_steady_rate_is_found_early_and_late(until_s: float) -> None:
    """5 requests/s of 40 tokens: 200 steps' worth of batch slots per second, each with 100 + 20 KV slots on average."""
    places, slots = steady(5.0, 100, 40, until_s).per_step_s(until_s, 1.0)
    assert places == pytest.approx(200.0, rel=0.05)
    assert slots == pytest.approx(200.0 * 120.0, rel=0.05)


def test_what_a_simulation_holds_at_once_is_what_the_law_says() -> None:
    """The slow twin: 40 requests/s, 30 steps each, at 50 ms a step."""
    step_s, rate_per_s, num_prompt, num_steps = 0.05, 40.0, 64, 30
    places, slots = steady(rate_per_s, num_prompt, num_steps, 100.0).per_step_s(100.0, 1.0)
    ages = [age for index in range(4000) if 0 <= (age := (100.0 - index / rate_per_s) / step_s) < num_steps]
    assert places * step_s == pytest.approx(len(ages), rel=0.1)
    assert slots * step_s == pytest.approx(sum(num_prompt + age for age in ages), rel=0.1)


def test_demand_fades_when_nothing_arrives() -> None:
    demand = steady(5.0, 100, 40, 60.0)
    assert demand.per_step_s(180.0, 1.0)[0] < 0.01 * demand.per_step_s(60.0, 1.0)[0]


def test_answers_shorter_than_allowed_count_for_less() -> None:
    demand = steady(5.0, 100, 40, 60.0)
    assert demand.per_step_s(60.0, 0.5)[0] == pytest.approx(0.5 * demand.per_step_s(60.0, 1.0)[0])


def test_no_arrivals_ask_for_nothing() -> None:
    assert ArrivalRate().per_step_s(1.0, 1.0) == (0.0, 0.0)
