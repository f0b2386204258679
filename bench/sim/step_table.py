"""Step times of an engine as a table over the number of new tokens, fitted to recorded steps.

The roofline of `bench.sim.step_models` has one knee. The torch engine has several: it changes the format of its weights
with the number of rows, and its products go by blocks of rows. So here time may bend at every knot:

    t = base + Σ_k slope_k·min(max(N − knot_k, 0), knot_{k+1} − knot_k) + context·Cd + pair·Ap + seq·D + (any prefill)

with all coefficients >= 0, hence more tokens never take less time; symbols as in `bench.sim.step_models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.sim.step_models import Pair, StepWork

KNOTS = (1, 2, 4, 5, 7, 8, 16, 32, 64, 128, 256)  # the last slope continues without end
_ROUNDS = 5  # by then the weights have settled


@dataclass(frozen=True, slots=True)
class StepTable:
    """`slopes_ms`: per token from each knot to the next; the rest as in `bench.sim.step_models.Coefficients`."""

    base_ms: float
    slopes_ms: tuple[float, ...]
    decode_context_ms_per_token: float
    prefill_ms_per_pair: float
    decode_ms_per_seq: float
    any_prefill_ms: float

    def times_ms(self, works: Sequence[StepWork]) -> NDArray[np.float64]:
        """Return how long steps take."""
        rest = (self.decode_context_ms_per_token, self.prefill_ms_per_pair, self.decode_ms_per_seq, self.any_prefill_ms)
        times_ms: NDArray[np.float64] = _features(works) @ np.asarray((self.base_ms, *self.slopes_ms, *rest))
        return times_ms


@dataclass(frozen=True, slots=True)
class TabledPair(Pair):
    """A pair whose steps take what `table` says, whatever its coefficients (which the limits of a run are made of)."""

    table: StepTable

    def step_s(self, work: StepWork) -> float:
        """Return the time of one step in seconds."""
        return 1e-3 * float(self.table.times_ms([work])[0]) + self.host_copy_s_per_token * work.num_copied


def fit_table(works: Sequence[StepWork], times_ms: NDArray[np.float64]) -> StepTable:
    """Fit by non-negative least squares of errors relative to the fitted times.

    Errors relative to the recorded times, as in the roofline's fit, count less below than above. Where steps of one
    kind differ, such a fit lies below their mean. A request waits for a sum of many steps, which would come out too
    short.
    """
    features = _features(works)
    fitted_ms = times_ms
    for _ in range(_ROUNDS):
        solution, _ = nnls(features / fitted_ms[:, None], times_ms / fitted_ms)
        fitted_ms = features @ solution
    base_ms, *slopes_ms = map(float, solution[: 1 + len(KNOTS)])
    return StepTable(base_ms, tuple(slopes_ms), *map(float, solution[1 + len(KNOTS) :]))


def _features(works: Sequence[StepWork]) -> NDArray[np.float64]:
    num_tokens = np.asarray([w.num_new_tokens for w in works], np.float64)
    knots = np.asarray(KNOTS, np.float64)
    widths = np.append(np.diff(knots), np.inf)
    ramps = np.clip(num_tokens[:, None] - knots, 0.0, widths)
    rest = [(w.decode_context, w.prefill_pairs, w.num_decodes, float(w.num_prefills > 0)) for w in works]
    return np.column_stack((np.ones(len(works)), ramps, np.asarray(rest, np.float64)))
