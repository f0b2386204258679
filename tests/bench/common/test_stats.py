"""Statistics: known values, and intervals that widen when they must."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.common.intervals import mean_interval, ratio_interval, share_interval
from bench.common.stats import mean_absolute_percentage_error, percentiles, share


def test_percentiles_interpolate_and_say_none_for_no_values() -> None:
    assert percentiles(list(range(101))) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None}


def test_share_counts_hits_and_says_none_for_no_trials() -> None:
    assert share([True, True, False, True]) == 0.75
    assert share([]) is None


def test_mean_interval_is_students_t() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.estimate == 3.0
    assert interval.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)


def test_one_run_gives_no_confidence() -> None:
    assert math.isinf(mean_interval([7.0]).high)


def test_mean_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(10.0, 3.0, (2000, 5))
    covered = [i.low <= 10.0 <= i.high for i in (mean_interval(row.tolist()) for row in samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_share_interval_stays_within_zero_and_one() -> None:
    interval = share_interval(45, 45)
    assert interval.estimate == 1.0
    assert interval.high == 1.0
    assert interval.low == pytest.approx(0.9213, abs=1e-3)


def test_ratio_interval_is_the_geometric_mean_of_pairs() -> None:
    interval = ratio_interval([2.0, 8.0], [1.0, 1.0])
    assert interval.estimate == pytest.approx(4.0)
    assert interval.low < 2.0 < 8.0 < interval.high


def test_percentage_error_is_relative_to_the_measured_value() -> None:
    assert mean_absolute_percentage_error([11.0, 18.0], [10.0, 20.0]) == pytest.approx(0.1)
