"""Workloads: stated rates and moments, and the same arrivals for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from bench.common.workload import (
    CHAT_SMALL,
    PAPER_BE,
    Lengths,
    closed_loop,
    gamma_arrivals,
    open_loop,
    parse_lengths,
    parse_trace,
    poisson_arrivals,
    scale_rate,
)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_arrivals_have_the_stated_rate_and_burstiness(cv: float) -> None:
    times = gamma_arrivals(5.0, 20_000.0, cv, np.random.default_rng(3))
    gaps = np.diff(times)
    assert len(times) / 20_000.0 == pytest.approx(5.0, rel=0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_arrivals_are_sorted_and_end_before_the_duration() -> None:
    times = poisson_arrivals(100.0, 10.0, np.random.default_rng(0))
    assert times == sorted(times)
    assert times[0] > 0.0
    assert times[-1] < 10.0


def test_no_rate_means_no_arrivals() -> None:
    assert poisson_arrivals(0.0, 10.0, np.random.default_rng(0)) == []


def test_the_same_seed_gives_the_same_workload() -> None:
    def make(seed: int) -> object:
        rng = np.random.default_rng(seed)
        return open_loop(gamma_arrivals(2.0, 60.0, 2.0, rng), CHAT_SMALL, rng)

    assert make(7) == make(7)
    assert make(7) != make(8)


def test_the_papers_be_lengths_are_uniform_over_their_inclusive_ranges() -> None:
    arrivals = closed_loop(20_000, PAPER_BE, np.random.default_rng(0))
    prompts = [a.num_prompt for a in arrivals]
    outputs = [a.num_output for a in arrivals]
    assert (min(prompts), max(prompts), min(outputs), max(outputs)) == (512, 1024, 32, 128)
    assert np.mean(prompts) == pytest.approx(768, rel=0.01)
    assert {a.arrival_s for a in arrivals} == {0.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A page\n\nof words\n", "no CSV file with output_tokens and prompt_tokens"),
        ("prompt_tokens,output_tokens\n", "no row below"),
        ("prompt_tokens,output_tokens\n1,2\n3\n", "line 3"),
        ("prompt_tokens,output_tokens\n1,x\n", "line 2"),
    ],
)
def test_a_file_of_another_kind_is_no_trace(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_trace(text)


def test_lognormal_lengths_have_the_stated_means() -> None:
    prompts, outputs = Lengths.lognormal(160, 64, 0.6).draw(np.random.default_rng(0), 50_000)
    assert prompts.mean() == pytest.approx(160, rel=0.02)
    assert outputs.mean() == pytest.approx(64, rel=0.02)
    assert min(prompts.min(), outputs.min()) >= 1


def test_a_trace_is_sorted_by_time_and_scaled_without_touching_lengths() -> None:
    trace = parse_trace("timestamp_s,prompt_tokens,output_tokens\n2.0,10,3\n0.5,7,1\n")
    assert [(a.arrival_s, a.num_prompt, a.num_output) for a in trace] == [(0.5, 7, 1), (2.0, 10, 3)]
    assert [a.arrival_s for a in scale_rate(trace, 2.0)] == [0.25, 1.0]


def test_a_length_file_draws_only_pairs_it_holds() -> None:
    prompts, outputs = parse_lengths("prompt_tokens,output_tokens\n5,6\n7,8\n").draw(np.random.default_rng(0), 100)
    assert set(zip(prompts.tolist(), outputs.tolist(), strict=True)) == {(5, 6), (7, 8)}
