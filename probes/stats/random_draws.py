"""The p of a value among random draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from probes.stats.intervals import float64_array

ROUNDING = 1e-9
"""A draw that repeats the observed set may differ from it by this share of the largest value."""


def draw_p(observed: float, null: Float[Any, " draw"]) -> float:
    """One-sided p value (1 + draws at least as large) / (1 + draws); NaN where there is no observed value or no draw.

    A draw that repeats the observed set may differ from it by rounding, and an undefined draw decides nothing: both
    count against the effect.

    Args:
        observed: the value in question, larger for a larger effect.
        null: the same of each random draw, in a NumPy array or a tensor.
    """
    draws = float64_array(null)
    if np.isnan(observed) or not len(draws):
        return np.nan
    sizes = np.abs([observed, *draws])
    rounding = ROUNDING * float(sizes[np.isfinite(sizes)].max(initial=0.0))
    return (1 + int((~(draws < observed - rounding)).sum())) / (1 + len(draws))
