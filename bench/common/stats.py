"""Statistics of one run: percentiles, shares and errors. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PERCENTILES = (50, 90, 99)


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return {"p50": …, "p90": …, "p99": …}; None where there are no values."""
    if len(values) == 0:
        return {f"p{p}": None for p in PERCENTILES}
    points = np.percentile(np.asarray(values, np.float64), PERCENTILES)
    return {f"p{p}": float(point) for p, point in zip(PERCENTILES, points, strict=True)}


def quantiles(values: Sequence[float], num_points: int = 41) -> list[float]:
    """Return `num_points` evenly spaced quantiles from minimum to maximum: a distribution small enough to store."""
    if len(values) == 0:
        return []
    points = np.quantile(np.asarray(values, np.float64), np.linspace(0.0, 1.0, num_points))
    return [float(f"{point:.4g}") for point in points]


def share(hits: Sequence[bool]) -> float | None:
    """Return the fraction of true values, or None when there are none to judge."""
    return sum(hits) / len(hits) if len(hits) else None


def mean_absolute_percentage_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean of |predicted − measured| / measured, as a ratio (0.05 is 5 %)."""
    predicted_array, measured_array = np.asarray(predicted), np.asarray(measured)
    return float(np.mean(np.abs(predicted_array - measured_array) / measured_array))
