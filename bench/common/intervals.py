"""Confidence intervals over runs and over requests.

Runs (seeds) get Student's t, a share of requests gets Wilson's score. Both are valid for few seeds and for shares
near 1, which occur here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval [low, high]."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over independent runs with Student's t interval; a single run has an unbounded one."""
    assert len(values) > 0, "no values"
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * float(stats.sem(values))
    return Interval(mean, mean - reach, mean + reach)


def share_interval(num_hits: int, num_trials: int, confidence: float = 0.95) -> Interval:
    """Share of hits with Wilson's score interval."""
    assert 0 <= num_hits <= max(num_trials, 1), f"{num_hits} hits of {num_trials}"
    bounds = stats.binomtest(num_hits, num_trials).proportion_ci(confidence, method="wilson")
    return Interval(num_hits / num_trials, float(bounds.low), float(bounds.high))


def ratio_interval(candidate: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Interval:
    """Geometric mean of candidate / baseline over paired runs (same seeds), with its t interval in log space."""
    assert len(candidate) == len(baseline), "runs must be paired by seed"
    assert min(*candidate, *baseline) > 0, "ratios need positive values"
    logs = mean_interval(np.log(np.asarray(candidate) / np.asarray(baseline)).tolist(), confidence)
    return Interval(*(math.exp(min(x, 700.0)) for x in (logs.estimate, logs.low, logs.high)))
