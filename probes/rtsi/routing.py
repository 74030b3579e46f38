"""Route risky cells to the baseline: what share of the traffic buys back what share of the lost refusals?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import InputError
from probes.rtsi.index import REFUSAL_COLLAPSE
from probes.stats.intervals import TOLERANCE


def risk(bands: pd.DataFrame) -> Float[np.ndarray, " n"]:
    """Score by which rows are routed, from `RTSI.bands`: a refusal collapse, without score, is the worst case, 1."""
    return bands["score"].mask(bands["reason"] == REFUSAL_COLLAPSE, 1.0).to_numpy(dtype=float)


def route(
    scores: Float[np.ndarray, " n"], refusal_rate_delta: Float[np.ndarray, " n"], threshold: float
) -> dict[str, float | int]:
    """One operating point: rows with score ≥ threshold go to the baseline; a row without a score stays.

    Returns:
        `threshold`; `n_routed`; `routed_share` of the rows; `recovered_share`, Σ max(0, −δ) over the routed rows / over
        all, NaN where no refusals were lost.

    Raises:
        InputError: no rows, or an undefined delta.
    """
    if len(scores) == 0 or not np.isfinite(refusal_rate_delta).all():
        raise InputError("A refusal-rate delta is undefined or there are no rows", "a finite delta for each row")
    routed, loss = scores >= threshold, np.maximum(0.0, -refusal_rate_delta)
    recovered = loss[routed].sum() / loss.sum() if loss.sum() > 0 else np.nan
    shares = {"routed_share": float(routed.mean()), "recovered_share": float(recovered)}
    return {"threshold": float(threshold), "n_routed": int(routed.sum()), **shares}


def curve(scores: Float[np.ndarray, " n"], refusal_rate_delta: Float[np.ndarray, " n"]) -> pd.DataFrame:
    """Every operating point, from routing nothing (threshold ∞) on; `pareto` marks those that no other one beats.

    No other point routes as little and recovers more, or recovers as much and routes less. `knee` marks the point
    farthest above the diagonal, where recovering starts to cost more than its share of the traffic.
    """
    thresholds = [np.inf, *np.sort(np.unique(scores[np.isfinite(scores)]))[::-1]]
    points = pd.DataFrame([route(scores, refusal_rate_delta, threshold) for threshold in thresholds])
    best_before = points["recovered_share"].cummax().shift(fill_value=-np.inf)
    gain = points["recovered_share"] - points["routed_share"]
    at_knee = points.index == gain.idxmax() if gain.notna().any() else np.zeros(len(points), dtype=bool)
    return points.assign(pareto=points["recovered_share"] > best_before + TOLERANCE, knee=at_knee)
