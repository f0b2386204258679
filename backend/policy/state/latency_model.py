"""The latency model: how long a step will take, learned from the steps that were.

    t = c0 + c1·new_tokens + c2·context_tokens + c3·prefill_pairs + c4·copied_tokens + c5·has_prefill     (all c >= 0)

Sequences with one new token count their context in `context_tokens`. Longer chunks of n tokens after a context of s
count n·(s + n/2) pairs, and any of them makes `has_prefill` 1. The fit is recursive least squares with forgetting in
information form. A 6x6 matrix of past steps decays by `forgetting` a step. Non-negative coordinate descent, started
from the last solution, follows it. Errors count relative to the step's time. An outlier (a page fault, a compile)
counts by Huber's weight only. Directions that recent steps say nothing about keep their coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kv.compiled import compiled

NUM_COEFFICIENTS = 6
# A cautious guess for an unknown machine: 10 ms a step, 2,000 prompt tokens a second.
PRIOR = (10e-3, 500e-6, 0.5e-6, 50e-9, 10e-6, 1e-3)
_SCALE = np.array((1.0, 100.0, 10_000.0, 100_000.0, 1_000.0, 1.0))  # typical features: well conditioned, then
_PRIOR_SPREAD = 2.0  # the prior's coefficients may be wrong by this factor; an offline fit by _FIT_SPREAD
_FIT_SPREAD = 0.2
_NOISE = 0.05  # relative spread of step times that the prior is weighed against
_ERROR_RATE = 0.02  # weight of the newest step in the moving averages of the error
_HUBER = 3.0  # errors beyond this multiple of the typical error lose weight
_SWEEPS = 3
_UNBOUNDED = 1 << 30  # tokens that no step reaches
_OVERSHOOT_QUANTILE = 0.95


Coefficients: TypeAlias = tuple[float, float, float, float, float, float]  # c0..c5


class StepFeatures(NamedTuple):
    """What the model knows of a step: counts, and whether any chunk of a prompt is in it."""

    new_tokens: int = 0
    context_tokens: int = 0
    prefill_pairs: float = 0.0
    copied_tokens: int = 0
    has_prefill: bool = False


class LatencyModel:
    """Predicts step times in seconds; `observe` refines it after each step.

    `coefficients` are c0..c5. `error_ratio` is the moving average of |predicted - measured| / measured;
    `overshoot_ratio` the 95th percentile of (measured - predicted) / predicted, at least 0.
    """

    c0: float
    c1: float
    c2: float
    c3: float
    c4: float
    c5: float

    def __init__(
        self, coefficients: Sequence[float] = PRIOR, forgetting: float = 0.995, is_fitted: bool = False
    ) -> None:
        """Start from `coefficients`; `is_fitted` says that they come from measurements and not from a guess."""
        spread = _FIT_SPREAD if is_fitted else _PRIOR_SPREAD
        self.error_ratio = 0.0
        self.overshoot_ratio = 0.0
        self.num_observed = 0
        self._forgetting = forgetting
        self._typical_error = 0.5
        self._theta = np.array(coefficients) * _SCALE
        certainty = (_NOISE / (spread * np.maximum(self._theta, 1e-6))) ** 2
        self._information = np.diag(certainty)
        self._moments = certainty * self._theta
        self._publish()

    @property
    def coefficients(self) -> Coefficients:
        return (self.c0, self.c1, self.c2, self.c3, self.c4, self.c5)

    def predict_s(self, features: StepFeatures) -> float:
        """Return the predicted time of a step."""
        new_tokens, context_tokens, prefill_pairs, copied_tokens, has_prefill = features
        return (
            self.c0
            + self.c1 * new_tokens
            + self.c2 * context_tokens
            + self.c3 * prefill_pairs
            + self.c4 * copied_tokens
            + self.c5 * has_prefill
        )

    def prefill_s(self, num_tokens: int, context: int) -> float:
        """Return what a chunk of `num_tokens` after `context` tokens adds to a step that has a prefill already."""
        return self.c1 * num_tokens + self.c3 * num_tokens * (context + 0.5 * num_tokens)

    def max_chunk(self, budget_s: float, context: int) -> int:
        """Return the largest chunk after `context` tokens that takes at most `budget_s`; the inverse of `prefill_s`."""
        if budget_s <= 0.0:
            return 0
        if budget_s == math.inf:
            return _UNBOUNDED
        linear = self.c1 + self.c3 * context
        divisor = linear + math.sqrt(linear * linear + 2.0 * self.c3 * budget_s)
        return int(min(2.0 * budget_s / divisor, _UNBOUNDED)) if divisor > 0.0 else _UNBOUNDED

    def observe(self, features: StepFeatures, duration_s: float) -> None:
        """Learn from one step that took `duration_s` (> 0)."""
        predicted_s = max(self.predict_s(features), 1e-6)
        error = (duration_s - predicted_s) / predicted_s
        self._track_error(error, predicted_s, duration_s)
        weight = min(1.0, _HUBER * self._typical_error / max(abs(error), 1e-9))
        row = np.array((1.0, *features)) / (_SCALE * duration_s)  # errors then count relatively
        _accumulate(self._information, self._moments, row, weight, self._forgetting)
        _descend(self._information, self._moments, self._theta)
        self._publish()
        self.num_observed += 1

    def _track_error(self, error: float, predicted_s: float, duration_s: float) -> None:
        rate = max(_ERROR_RATE, 1.0 / (self.num_observed + 1))
        self.error_ratio += rate * (abs(predicted_s - duration_s) / duration_s - self.error_ratio)
        clipped = min(abs(error), 4.0 * self._typical_error)
        self._typical_error = max(0.01, self._typical_error + _ERROR_RATE * (clipped - self._typical_error))
        step = self._typical_error * 0.1
        if error > self.overshoot_ratio:
            self.overshoot_ratio += step * _OVERSHOOT_QUANTILE
        else:
            self.overshoot_ratio = max(0.0, self.overshoot_ratio - step * (1.0 - _OVERSHOOT_QUANTILE))

    def _publish(self) -> None:
        self.c0, self.c1, self.c2, self.c3, self.c4, self.c5 = (self._theta / _SCALE).tolist()


_Matrix: TypeAlias = NDArray[np.float64]


@compiled("void(float64[:,::1], float64[::1], float64[::1], float64, float64)")
def _accumulate(information: _Matrix, moments: _Matrix, row: _Matrix, weight: float, forgetting: float) -> None:
    """Add one row of features, whose value is 1, to what past steps say."""
    for j in range(NUM_COEFFICIENTS):
        for k in range(NUM_COEFFICIENTS):
            information[j, k] = forgetting * information[j, k] + weight * row[j] * row[k]
        moments[j] = forgetting * moments[j] + weight * row[j]


@compiled("void(float64[:,::1], float64[::1], float64[::1])")
def _descend(information: _Matrix, moments: _Matrix, theta: _Matrix) -> None:
    """Move `theta` towards the non-negative least squares solution, held to the last one where nothing is known."""
    hold = 1e-4 * information[0, 0]
    last = theta.copy()
    for _ in range(_SWEEPS):
        for j in range(NUM_COEFFICIENTS):
            product = 0.0
            for k in range(NUM_COEFFICIENTS):
                product += information[j, k] * theta[k]
            own = information[j, j]
            gradient = moments[j] - product + own * theta[j]
            theta[j] = max(0.0, (gradient + hold * last[j]) / (own + hold))
