"""Machines that a latency model gets wrong: steps of random length, and a machine that is slower now and then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SLOW_PERIOD_S = 20.0  # seconds; a machine that slows down does so in the second half of each

Stretch = Callable[[float], float]


def steady(_now_s: float) -> float:
    """Return 1: each step takes what the step model says."""
    return 1.0


def stretch(noise: float, slowdown: float, seed: int) -> Stretch:
    """Return by what factor the step that begins at a time takes longer than the step model says.

    noise: standard deviation of a lognormal factor of mean 1. slowdown: a further factor, in each second 10 s.
    """
    if not noise and slowdown == 1.0:
        return steady
    rng = np.random.default_rng([seed, 4])
    sigma = float(np.sqrt(np.log1p(noise**2)))

    def factor(now_s: float) -> float:
        is_slow = now_s % SLOW_PERIOD_S >= 0.5 * SLOW_PERIOD_S
        return float(rng.lognormal(-0.5 * sigma**2, sigma)) * (slowdown if is_slow else 1.0)

    return factor
