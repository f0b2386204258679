"""The latency model: how long a step will take, learned from the steps that were.

    t = c0 + c1·new_tokens + c2·context_tokens + c3·prefill_pairs + c4·copied_tokens + c5·has_prefill     (all c >= 0)

Sequences with one new token count their context in `context_tokens`. Longer chunks of n tokens after a context of s
count n·(s + n/2) pairs, and any of them makes `has_prefill` 1. The fit is recursive least squares with forgetting in
information form. A 6x6 matrix of past steps decays by `forgetting` a step. Non-negative coordinate descent, started
from the last solution, follows it. Errors count relative to the step's time. Directions that recent steps say nothing
about keep their coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kv.compiled import compiled

# A cautious guess for an unknown machine: 10 ms a step, 2,000 prompt tokens a second. Also the unit of coefficients.
PRIOR = (10e-3, 500e-6, 0.5e-6, 50e-9, 10e-6, 1e-3)
_HOLD = 1e-4  # Evidence, relative to that of all steps, below which a coefficient stays as it was.
_TAIL = 0.05  # Part of the steps that may take longer than the margin allows; also the weight of a step in averages.


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
    `overshoot_ratio` follows the 95th percentile of (measured - predicted) / predicted, at least 0.
    """

    c0: float
    c1: float
    c2: float
    c3: float
    c4: float
    c5: float

    def __init__(self, coefficients: Sequence[float] = PRIOR, forgetting: float = 0.995) -> None:
        """Start from `coefficients`, an offline fit or a guess."""
        self.error_ratio = 0.0
        self.overshoot_ratio = 0.0
        self._forgetting = forgetting
        self._theta = np.array(coefficients) / np.array(PRIOR)
        self._information = _HOLD * np.eye(len(PRIOR))
        self._moments = _HOLD * self._theta
        self._publish((self._theta * PRIOR).tolist())

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

    def max_chunk(self, budget_s: float, context: int, most: int) -> int:
        """Return the largest chunk after `context` tokens, up to `most`, that takes at most `budget_s`; the inverse of
        `prefill_s`."""
        if budget_s <= 0.0 or self.prefill_s(most, context) <= budget_s:
            return most if budget_s > 0.0 else 0
        linear = self.c1 + self.c3 * context
        return int(2.0 * budget_s / (linear + math.sqrt(linear * linear + 2.0 * self.c3 * budget_s)))

    def observe(self, features: StepFeatures, duration_s: float) -> None:
        """Learn from one step that took `duration_s` (> 0)."""
        predicted_s = max(self.predict_s(features), 1e-6)
        self._track_error(predicted_s, duration_s)
        new_tokens, context_tokens, prefill_pairs, copied_tokens, has_prefill = features
        row = (1.0, float(new_tokens), float(context_tokens), prefill_pairs, float(copied_tokens), float(has_prefill))
        self._publish(_learn(self._information, self._moments, self._theta, row, duration_s, self._forgetting))

    def _track_error(self, predicted_s: float, duration_s: float) -> None:
        """Follow the mean error, and the quantile of those by which steps took longer, in steps of that mean."""
        self.error_ratio += _TAIL * (abs(predicted_s - duration_s) / duration_s - self.error_ratio)
        is_above = duration_s > predicted_s * (1.0 + self.overshoot_ratio)
        self.overshoot_ratio = max(0.0, self.overshoot_ratio + _TAIL * self.error_ratio * (is_above - _TAIL))

    def _publish(self, coefficients: Sequence[float]) -> None:
        self.c0, self.c1, self.c2, self.c3, self.c4, self.c5 = coefficients


_Matrix: TypeAlias = NDArray[np.float64]


@compiled()
def _accumulate(information: _Matrix, moments: _Matrix, row: _Matrix, forgetting: float) -> None:
    """Add one row of features, whose value is 1, to what past steps say."""
    for j in range(len(row)):
        for k in range(len(row)):
            information[j, k] = forgetting * information[j, k] + row[j] * row[k]
        moments[j] = forgetting * moments[j] + row[j]


@compiled()
def _descend(information: _Matrix, moments: _Matrix, theta: _Matrix) -> None:
    """Move `theta` towards the non-negative least squares solution, held to the last one where nothing is known."""
    hold = _HOLD * information[0, 0]
    last = theta.copy()
    for _ in range(len(theta)):
        for j in range(len(theta)):
            product = 0.0
            for k in range(len(theta)):
                product += information[j, k] * theta[k]
            own = information[j, j]
            gradient = moments[j] - product + own * theta[j]
            theta[j] = max(0.0, (gradient + hold * last[j]) / (own + hold))


@compiled("UniTuple(float64, 6)(float64[:,::1], float64[::1], float64[::1], UniTuple(float64, 6), float64, float64)")
def _learn(
    information: _Matrix,
    moments: _Matrix,
    theta: _Matrix,
    features: Coefficients,
    duration_s: float,
    forgetting: float,
) -> Coefficients:
    """Learn from a step of `features` (1 for c0) that took `duration_s`; return the coefficients."""
    row = np.empty(len(theta))
    for j in range(len(theta)):
        row[j] = features[j] * PRIOR[j] / duration_s  # errors then count relatively
    _accumulate(information, moments, row, forgetting)
    _descend(information, moments, theta)
    return (
        theta[0] * PRIOR[0],
        theta[1] * PRIOR[1],
        theta[2] * PRIOR[2],
        theta[3] * PRIOR[3],
        theta[4] * PRIOR[4],
        theta[5] * PRIOR[5],
    )
