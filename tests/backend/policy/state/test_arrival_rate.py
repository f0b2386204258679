"""The arrival rate is used by Little's law: what arrives per second, times how long it stays."""

from __future__ import annotations

import pytest

from backend.policy.state.arrival_rate import ArrivalRate
from tests.backend.factories import ended, rt


def steady(rate_per_s: float, num_prompt: int, max_tokens: int, until_s: float, num_output: int) -> ArrivalRate:
    """Return the rate of requests that arrive at equal distances until `until_s`, each of which ended at once."""
    arrivals = ArrivalRate()
    for index in range(int(rate_per_s * until_s)):
        request = rt(num_prompt, max_tokens, arrival_s=index / rate_per_s)
        arrivals.note(request)
        arrivals.note_end(ended(request, num_output))
    return arrivals


@pytest.mark.parametrize("until_s", [10.0, 200.0])
def test_a_steady_rate_is_found_early_and_late(until_s: float) -> None:
    """5 requests/s of 40 tokens: 200 steps' worth of batch slots per second, each with 100 + 20 KV slots on average."""
    batch_slots, kv_slots = steady(5.0, 100, 40, until_s, num_output=40).per_step_s(until_s)
    assert batch_slots == pytest.approx(200.0, rel=0.05)
    assert kv_slots == pytest.approx(200.0 * 120.0, rel=0.05)


def test_what_a_simulation_holds_at_once_is_what_the_law_says() -> None:
    """The slow twin: 40 requests/s, 30 steps each, at 50 ms a step."""
    step_s, rate_per_s, num_prompt, num_steps = 0.05, 40.0, 64, 30
    batch_slots, kv_slots = steady(rate_per_s, num_prompt, num_steps, 100.0, num_output=30).per_step_s(100.0)
    ages = [age for index in range(4000) if 0 <= (age := (100.0 - index / rate_per_s) / step_s) < num_steps]
    assert batch_slots * step_s == pytest.approx(len(ages), rel=0.1)
    assert kv_slots * step_s == pytest.approx(sum(num_prompt + age for age in ages), rel=0.1)


def test_the_rate_fades_when_nothing_arrives() -> None:
    arrivals = steady(5.0, 100, 40, 60.0, num_output=40)
    assert arrivals.per_step_s(180.0)[0] < 0.01 * arrivals.per_step_s(60.0)[0]


@pytest.mark.parametrize(("num_output", "num_held"), [(40, 120.0), (20, 110.0), (4, 102.0)])
def test_outputs_count_as_long_as_they_became(num_output: int, num_held: float) -> None:
    batch_slots, kv_slots = steady(5.0, 100, 40, 60.0, num_output).per_step_s(60.0)
    assert batch_slots == pytest.approx(5.0 * num_output, rel=0.05)
    assert kv_slots == pytest.approx(5.0 * num_output * num_held, rel=0.05)


def test_before_any_has_ended_each_counts_as_a_quarter_as_long_as_it_may_become() -> None:
    arrivals = ArrivalRate()
    for index in range(300):
        arrivals.note(rt(100, 40, arrival_s=index / 5.0))
    batch_slots, kv_slots = arrivals.per_step_s(60.0)
    assert batch_slots == pytest.approx(5.0 * 10, rel=0.05)
    assert kv_slots == pytest.approx(5.0 * 10 * 105.0, rel=0.05)


def test_a_short_one_that_ends_says_little_about_long_ones_that_run() -> None:
    """By its whole length alone they would hold 16 times as many KV slots, and best-effort found no room."""
    arrivals = ArrivalRate()
    for _ in range(4):
        arrivals.note(rt(1, 4000))
    arrivals.note(short := rt(1, 1))
    before = arrivals.per_step_s(1.0)
    arrivals.note_end(ended(short, 1))
    assert arrivals.per_step_s(1.0) == pytest.approx(before, rel=0.01)


def test_short_outputs_that_may_be_long_speak_for_themselves_only() -> None:
    """60 requests/s of 10,000 tokens at most, which put out 5 or are cancelled, beside 5 requests/s of 40 tokens. One
    ratio for all is off by far."""
    arrivals = ArrivalRate()
    running = []  # 2 s each, and the short ones half of one
    for index in range(6500):
        now_s = index / 65.0
        request = rt(100, 40, arrival_s=now_s) if index % 13 == 0 else rt(100, 10_000, arrival_s=now_s)
        arrivals.note(request)
        running.append((now_s + (2.0 if index % 13 == 0 else 0.5), index, request))
        while running and (earliest := min(running, key=lambda each: each[0]))[0] <= now_s:
            running.remove(earliest)
            num_output = 40 if earliest[1] % 13 == 0 else 5 * (earliest[1] % 2)
            arrivals.note_end(ended(earliest[2], num_output))
    batch_slots, kv_slots = arrivals.per_step_s(100.0)
    assert batch_slots == pytest.approx(5.0 * 40 + 30.0 * 5, rel=0.1)
    assert kv_slots == pytest.approx(5.0 * 40 * 120 + 30.0 * 5 * 102.5, rel=0.1)


def test_no_arrivals_ask_for_nothing() -> None:
    assert ArrivalRate().per_step_s(1.0) == (0.0, 0.0)
