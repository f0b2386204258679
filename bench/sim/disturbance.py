"""Machines that a latency model gets wrong: steps of random length, stalls, and a machine that is slower at times."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SLOW_PERIOD_S = 20.0  # seconds; a machine that slows down does so in the second half of each
STALL_SHARE = 1 / 500  # of the steps of a machine that stalls

Disturbance = Callable[[float, float], float]


def steady(duration_s: float, _now_s: float) -> float:
    """Return `duration_s`: each step takes what the step model says."""
    return duration_s


def disturbance(noise: float, slowdown: float, stall_s: float, seed: int) -> Disturbance:
    """Return how long a step takes, by what the step model says and when it begins.

    noise: standard deviation of a lognormal factor of mean 1. slowdown: a further factor, in each second 10 s.
    stall_s: seconds that STALL_SHARE of the steps take longer.
    """
    if not noise and not stall_s and slowdown == 1.0:
        return steady
    rng = np.random.default_rng([seed, 4])
    sigma = float(np.sqrt(np.log1p(noise**2)))

    def disturbed_s(duration_s: float, now_s: float) -> float:
        is_slow = now_s % SLOW_PERIOD_S >= 0.5 * SLOW_PERIOD_S
        factor = float(rng.lognormal(-0.5 * sigma**2, sigma)) * (slowdown if is_slow else 1.0)
        return duration_s * factor + stall_s * (rng.random() < STALL_SHARE)

    return disturbed_s
