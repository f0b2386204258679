"""How long a step may be for the decodes: their slack, and their loans until they end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.engine.scheduler import Scheduler
from backend.policy.bros.decode_bounds import decode_bounds, num_sure
from backend.policy.state.output_lengths import OutputLengths
from tests.backend.factories import rt
from tests.backend.policy.driving import FIT, make, start, start_as_predicted, step

NOW_S, STEP_S = 0.001, 0.01
EXACT = (1.0,) * 20  # all outputs before were as long as max_tokens


def known(ratios: Sequence[float]) -> OutputLengths:
    """Learn from outputs that ended after these parts of 400 tokens."""
    return of_lengths([(round(ratio * 400), 400) for ratio in ratios])


def of_lengths(ended: Sequence[tuple[int, int]]) -> OutputLengths:
    """Learn from outputs of (length, max_tokens)."""
    lengths = OutputLengths()
    for length, most in ended:
        lengths.note(length, most)
    return lengths


def loan_s(scheduler: Scheduler, ratios: Sequence[float] = EXACT, *, use: float = 1.0, odd_s: float = 0.0) -> float:
    """Return the longest step for prompts."""
    table, lengths = scheduler.view.table, known(ratios)
    rows = table.groups().rt_decodes
    _, _, (longest_s, *_) = decode_bounds(
        table.counts, table.times, rows, NOW_S, use, STEP_S, 0.0, 0.0, odd_s, lengths.ratios, lengths.counts, 0.9
    )
    return longest_s


def slack_s(scheduler: Scheduler, row: int = 0) -> float:
    return float(scheduler.view.table.deadline_s[row]) - NOW_S


# The length that is counted on


def twin_num_sure(num_output: int, max_output: int, ended: Sequence[tuple[int, int]]) -> int:
    """Of the outputs that were allowed as much and got as far, leave out the shortest tenth; take the shortest then."""
    alike = [length / most for length, most in ended if most.bit_length() >= max_output.bit_length()]
    longer = sorted(ratio for ratio in alike if ratio > num_output / max_output)
    rest = longer[math.floor(0.1 * len(longer)) :]
    return int(rest[0] * max_output) if rest else 0


@given(
    ended=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)).map(sorted).map(tuple), max_size=60),
    num_output=st.integers(0, 400),
    max_output=st.integers(1, 400),
)
def test_nine_in_ten_of_the_outputs_that_got_as_far_are_as_long(
    ended: list[tuple[int, int]], num_output: int, max_output: int
) -> None:
    lengths = of_lengths(ended)
    counted_on = num_sure(num_output, max_output, lengths.ratios, lengths.counts)
    assert counted_on == twin_num_sure(num_output, max_output, ended)


def test_half_of_the_outputs_end_early_so_a_young_one_may_too() -> None:
    lengths = of_lengths([(10, 1000), (1000, 1000)] * 20)
    assert num_sure(1, 1000, lengths.ratios, lengths.counts) == 10
    assert num_sure(10, 1000, lengths.ratios, lengths.counts) == 1000, "it is none of these"
    assert num_sure(1000, 1000, lengths.ratios, lengths.counts) == 0


def test_requests_for_a_single_token_say_nothing_of_long_ones() -> None:
    lengths = of_lengths([(10, 1000)] * 9 + [(1, 1)] * 60)
    assert num_sure(1, 1000, lengths.ratios, lengths.counts) == 10
    assert num_sure(0, 10**9, lengths.ratios, lengths.counts) == 0, "nobody was allowed as much"


# Loans


def test_half_of_the_time_to_catch_up_is_lent() -> None:
    """One of 50 tokens is out. After the next, 48 are to come, and each gains 40 ms."""
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    assert loan_s(scheduler) == pytest.approx(slack_s(scheduler) + 0.5 * 48 * 0.04)
    assert loan_s(scheduler, use=0.8) == pytest.approx(0.8 * slack_s(scheduler) + 0.5 * 48 * 0.03)


def test_what_may_end_now_lends_nothing() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05))
    assert loan_s(scheduler, [0.04] * 3 + [1.0] * 7) == pytest.approx(slack_s(scheduler))
    assert loan_s(scheduler, []) == pytest.approx(slack_s(scheduler)), "no output has ended yet"


def test_the_decode_that_can_lend_least_counts() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05), rt(10, 4, tpot_slo_s=0.05))
    assert loan_s(scheduler) == pytest.approx(slack_s(scheduler, 1) + 0.5 * 2 * 0.04)


def test_an_inter_token_objective_lends_nothing() -> None:
    scheduler = make()
    start(scheduler, rt(10, 50, tpot_slo_s=0.05, itl_slo_s=0.1))
    assert loan_s(scheduler) == pytest.approx(slack_s(scheduler))


def test_a_prompt_with_one_token_left_lends_nothing_of_its_ttft() -> None:
    scheduler = make(max_tokens_per_step=64)
    scheduler.add(rt(65, 400, ttft_slo_s=0.3), 0.0)
    step(scheduler, 0.0, 0.001)
    assert len(scheduler.view.table.groups().rt_decodes) == 1
    assert loan_s(scheduler) == pytest.approx(slack_s(scheduler))


def test_a_pace_that_few_ask_for_binds_no_prompt() -> None:
    scheduler = make()
    start(scheduler, rt(10, 4, tpot_slo_s=0.005), rt(10, 4, tpot_slo_s=0.015), *(rt(10, 4) for _ in range(2)))
    usual_s = slack_s(scheduler, 2) + 0.5 * 2 * (0.2 - STEP_S)
    assert loan_s(scheduler, odd_s=0.02) == pytest.approx(usual_s)
    assert loan_s(scheduler, odd_s=1.0) < 0.1, "most ask for less"
    assert loan_s(scheduler) < 0.1


@pytest.mark.parametrize("pace_s", [0.0102, 0.0105, 0.0107, 0.0109, 0.0115, 0.0125])
@pytest.mark.parametrize("knob", ["tpot_slo_s", "itl_slo_s"])
@pytest.mark.parametrize("first_prefill_s", [0.0, 0.03])
@pytest.mark.parametrize("num_prompt", [3, 400])
def test_decodes_that_ask_for_a_pace_that_all_cannot_keep_stop_no_prompt(
    pace_s: float, knob: str, num_prompt: int, first_prefill_s: float
) -> None:
    """One of them takes 10.1 ms a step, and all eight take 10.8 ms: no prompt had a token until they ended.

    A step with a prompt takes up to 30 ms more.
    """
    scheduler = make(num_blocks=4000, latency_coefficients=(*FIT[:5], first_prefill_s))
    now_s = start_as_predicted(scheduler, *(rt(10, 4000, **{knob: pace_s}) for _ in range(8)))
    for _ in range(200):
        now_s += step(scheduler, now_s).predicted_s
    prompt = rt(num_prompt, 5, arrival_s=now_s, ttft_slo_s=1.0)
    scheduler.add(prompt, now_s)
    end_s = now_s + 1.0
    while not prompt.num_output and now_s < end_s:
        now_s += step(scheduler, now_s).predicted_s
    assert now_s <= end_s
    assert prompt.num_output == 1


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 40])
def test_the_slack_that_half_of_the_decodes_have(num_rows: int) -> None:
    scheduler = make(max_seqs_per_step=64)
    start(scheduler, *(rt(4, 50) for _ in range(40)))
    table = scheduler.view.table
    table.deadline_s[:40] = np.random.default_rng(num_rows).integers(0, 9, 40)  # some are equal
    rows = np.ascontiguousarray(table.rows()[:num_rows])
    lengths = known(EXACT)
    slacks_s, _, (*_, half_s) = decode_bounds(
        table.counts, table.times, rows, 1.0, 0.9, STEP_S, 0.0, 0.0, 0.0, lengths.ratios, lengths.counts, 0.9
    )
    assert half_s == (np.sort(slacks_s)[num_rows // 2] if num_rows else math.inf)


# In a schedule


def learn_that_outputs_are_exact(scheduler: Scheduler) -> None:
    scheduler.view.traffic.rt_lengths = known(EXACT)


@pytest.mark.parametrize("lends", [True, False])
def test_a_long_prompt_is_in_time_beside_a_decode_that_lends(lends: bool) -> None:
    """Its 1,500 tokens take 160 ms at once, and 240 ms in steps that are no longer than the decode's 30 ms."""
    scheduler = make(num_blocks=400)
    learn_that_outputs_are_exact(scheduler)
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


@pytest.mark.parametrize("ttft_slo_s", [0.2, 10.0])
def test_a_prompt_that_can_wait_leaves_the_next_one_in_time(ttft_slo_s: float) -> None:
    """1,900 tokens take 200 ms at once. Nobody may ask for that with a TTFT SLO of 10 s beside one of 0.2 s."""
    scheduler = make(num_blocks=600, max_tokens_per_step=2048)
    learn_that_outputs_are_exact(scheduler)
    now_s = start_as_predicted(scheduler, rt(10, 400, ttft_slo_s=0.2, tpot_slo_s=0.05))
    scheduler.add(rt(1850, 1, arrival_s=now_s, ttft_slo_s=ttft_slo_s), now_s)
    predicted_s = scheduler.plan(now_s).predicted_s
    assert predicted_s == pytest.approx(0.1951) if ttft_slo_s == 0.2 else predicted_s <= 0.1
