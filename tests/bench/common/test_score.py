"""Scores: by arrival in the window, misses for what did not finish."""

from __future__ import annotations

import pytest

from bench.common.score import RequestRecord, Slos, Window, score_be, score_rt

SLOS = Slos(0.4, 0.2)
WINDOW = Window(10.0, 20.0)


def make_record(
    arrival_s: float, times_s: list[float], *, is_rt: bool = True, is_finished: bool = True
) -> RequestRecord:
    finished_s = times_s[-1] if is_finished else None
    return RequestRecord("r", is_rt, arrival_s, 10, len(times_s), times_s, finished_s)


def test_only_requests_that_arrive_in_the_window_are_scored() -> None:
    records = [make_record(t, [t + 0.1]) for t in (9.99, 10.0, 19.99, 20.0)]
    assert score_rt(records, SLOS, WINDOW)["num_rt"] == 2


def test_ttft_and_tpot_are_judged_apart_and_together() -> None:
    records = [
        make_record(11.0, [11.1, 11.2, 11.3]),
        make_record(12.0, [12.5, 12.6]),
        make_record(13.0, [13.1, 13.8]),
        make_record(14.0, [14.9, 15.9]),
    ]
    assert score_rt(records, SLOS, WINDOW)["rt_attainment"] == {"ttft": 0.5, "tpot": 0.5, "both": 0.25}


def test_tpot_is_the_mean_after_the_first_token() -> None:
    record = make_record(0.0, [1.0, 1.1, 1.5])
    assert record.tpot_s == pytest.approx(0.25)
    assert record.normalised_latency_s == pytest.approx(0.5)


def test_a_one_token_answer_has_no_gap_to_miss() -> None:
    assert make_record(11.0, [11.1]).tpot_s == 0.0


def test_an_unfinished_request_misses_its_tpot_however_fast_it_was() -> None:
    record = make_record(11.0, [11.1, 11.2], is_finished=False)
    assert score_rt([record], SLOS, WINDOW)["rt_attainment"] == {"ttft": 1.0, "tpot": 0.0, "both": 0.0}


def test_best_effort_counts_what_is_emitted_within_the_window() -> None:
    records = [make_record(0.0, [9.0, 10.5, 11.0], is_rt=False), make_record(15.0, [19.0, 21.0], is_rt=False)]
    scores = score_be(records, WINDOW)
    assert scores["be_tokens_per_s"] == pytest.approx(0.3)
    assert scores["be_requests_per_s"] == pytest.approx(0.1)
