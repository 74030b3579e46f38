"""The p of a value among random draws."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float


def draw_p(observed: float, null: Float[Any, " draw"]) -> float:
    """One-sided p value (1 + draws at least as large) / (1 + draws); NaN where the observed value is undefined.

    A draw that repeats the observed set may differ from it by rounding, and an undefined draw decides nothing: both
    count against the effect.
    """
    if observed != observed:
        return float("nan")
    at_least = ~(null < observed * (1 - 1e-9))
    return (1 + int(at_least.sum())) / (1 + len(null))
