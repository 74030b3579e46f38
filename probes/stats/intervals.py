"""Estimates: a mean or a rate with its 95 % interval."""

from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy import special, stats

from interp.errors import InputError

CONFIDENCE = 0.95
ALPHA = 0.05
"""A p below this is called significant."""


class Estimate(NamedTuple):
    """A statistic with its 95 % bounds, in the unit of the data; NaN where it, or they, are undefined.

    Attributes:
        value: the statistic of the sample.
        low, high: its bounds.
        n: how many values it comes from; 0 where that is not said.
        reason: why the statistic or its bounds are undefined, else "".
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    reason: str = ""


def float64_array(values: Float[Any, " n"]) -> Float64[np.ndarray, " n"]:
    """A NumPy array, or a tensor on any device, as an array in float64."""
    return values.double().cpu().numpy() if hasattr(values, "cpu") else np.asarray(values, dtype=np.float64)


def mean_interval(values: Float[Any, " n"]) -> Estimate:
    """Mean of independent values with Student's t interval; for paired data pass the differences.

    One value has no bounds, and a value that is not finite leaves all three undefined: dropping it would bias the mean.

    Args:
        values: a NumPy array, or a tensor on any device; summed in float64.
    """
    data = float64_array(values)
    if len(data) == 0 or not np.isfinite(data).all():
        return Estimate(np.nan, n=len(data), reason="a value is undefined" if len(data) else "no values")
    mean = float(data.mean())
    if len(data) == 1:
        return Estimate(mean, n=1, reason="one value has no bounds")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return Estimate(mean, mean - half, mean + half, len(data))


def wilson(successes: int | float, n: int) -> Estimate:
    """A rate with Wilson's 95 % interval.

    Source: Newcombe (1998), Statistics in Medicine 17, 857–872, method 3. The terms are in scipy's order, so that the
    bounds are `scipy.stats.binomtest`'s to the last bit; that function takes whole numbers only.

    Args:
        successes: no whole number where it was worked out from a rounded rate.
        n: trials.

    Raises:
        InputError: n = 0, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n}", "0 ≤ successes ≤ n and n ≥ 1")
    rate, z = successes / n, float(special.ndtri((1 + CONFIDENCE) / 2))
    scale = 2 * (n + z**2)
    centre, half = (2 * n * rate + z**2) / scale, z / scale * sqrt(4 * n * rate * (1 - rate) + z**2)
    return Estimate(rate, centre - half if successes else 0.0, centre + half if successes < n else 1.0, n)


def rate_interval(outcomes: Bool[Any, " n"]) -> Estimate:
    """Share of true outcomes, in a NumPy array or a tensor, with Wilson's interval; undefined where there are none."""
    n = len(outcomes)
    return wilson(int(outcomes.sum()), n) if n else Estimate(np.nan, reason="no outcomes")


TOLERANCE = 1e-9
"""On a rate: 22/220 is exactly 10 pp, whatever its floating-point difference says."""


def interval_columns(name: str, estimate: Estimate) -> dict[str, float]:
    """The three columns of an interval."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def interval_of(row: Any, name: str) -> Estimate:
    """The interval that stands in these three columns of a row, a mapping or a Series."""
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])
