"""95 % intervals of means and rates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate and its 95 % bounds, in the unit of the data; NaN where undefined."""

    estimate: float
    low: float
    high: float


def mean_interval(values: Float[Any, " n"]) -> Interval:
    """Mean of independent values with Student's t interval; for paired data pass the differences.

    One value has no bounds, and a value that is not finite leaves all three undefined: dropping it would bias the mean.

    Args:
        values: a NumPy array, or a tensor on any device; summed in float64.
    """
    data = values.double().cpu().numpy() if hasattr(values, "cpu") else np.asarray(values, dtype=np.float64)
    if len(data) == 0 or not np.isfinite(data).all():
        return Interval(np.nan, np.nan, np.nan)
    mean = float(data.mean())
    if len(data) == 1:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return Interval(mean, mean - half, mean + half)


def rate_interval(outcomes: Bool[Any, " n"]) -> Interval:
    """Share of true outcomes, in a NumPy array or a tensor, with Wilson's interval."""
    if len(outcomes) == 0:
        return Interval(np.nan, np.nan, np.nan)
    successes = int(outcomes.sum())
    bounds = stats.binomtest(successes, len(outcomes)).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / len(outcomes), float(bounds.low), float(bounds.high))


TOLERANCE = 1e-9
"""On a rate: 22/220 is exactly 10 pp, whatever its floating-point difference says."""


def interval_columns(name: str, value: Interval) -> dict[str, float]:
    """The three columns of an interval."""
    return {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
