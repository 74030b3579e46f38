"""d′: how far two groups lie apart in units of their spread, and its shift, with bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from probes.stats import intervals
from probes.stats.bootstrap import DRAWS, percentile_interval, resampled_means

NO_SPREAD = "d′ needs two prompts on each side and margins that vary"


def d_prime(
    mean_gap: Float[np.ndarray, " *shape"], variances: Float[np.ndarray, 2 * shape]
) -> Float[np.ndarray, " *shape"]:
    """Difference of means / √(mean of the two variances), NaN where neither group varies."""
    spread = np.sqrt(variances.mean(0))
    return np.divide(mean_gap, spread, out=np.full(np.shape(spread), np.nan), where=spread > 0)


def separations(
    above: Float[np.ndarray, "cells n_above"], below: Float[np.ndarray, "cells n_below"], seed: int = 0
) -> list[dict[str, Any]]:
    """d′ of every cell and its shift from the first, the columns of `probes.margin`'s `margin_separation`.

    Prompts are resampled within each group, the same ones for all cells, so that shifts stay paired; variances are
    unbiased, in the resamples too.

    Args:
        above: values of the group that should lie higher, the baseline's first.
        below: values of the other group.
        seed: of the resamples.
    """
    groups = (above, below)
    if min(group.shape[1] for group in groups) < 2:
        return [_row(np.nan, np.nan, _NONE, _NONE, np.nan) for _ in above]
    means = np.stack([group.mean(1) for group in groups])
    variances = np.stack([group.var(1, ddof=1) for group in groups])
    gaps = means[0] - means[1]
    levels = d_prime(gaps, variances)
    moments = [_resampled(group, seed + which) for which, group in enumerate(groups)]
    drawn = d_prime(moments[0][0] - moments[1][0], np.stack([variance for _, variance in moments]))
    by_means = d_prime(gaps, np.broadcast_to(variances[:, :1], variances.shape)) - levels[0]
    return [
        _row(levels[cell], levels[cell] - levels[0], drawn[:, cell], drawn[:, cell] - drawn[:, 0], by_means[cell])
        for cell in range(len(above))
    ]


_NONE = np.empty(0)


def _row(
    level: float,
    shift: float,
    levels: Float[np.ndarray, " draws"],
    shifts: Float[np.ndarray, " draws"],
    by_means: float,
) -> dict[str, Any]:
    return {
        **intervals.interval_columns("d_prime", percentile_interval(level, levels)),
        **intervals.interval_columns("d_prime_shift", percentile_interval(shift, shifts)),
        "shift_by_means": float(by_means),
        "shift_by_spread": float(shift - by_means),
        "reason": "" if np.isfinite(shift) else NO_SPREAD,
    }


def _resampled(
    values: Float[np.ndarray, "cells n"], seed: int
) -> tuple[Float[np.ndarray, "draws cells"], Float[np.ndarray, "draws cells"]]:
    """Means and unbiased variances over prompts drawn with replacement."""
    centre = values.mean(1, keepdims=True)  # or squares of large means cancel
    n = values.shape[1]
    moments = resampled_means(np.concatenate([values - centre, (values - centre) ** 2]), DRAWS, seed)
    means, squares = np.split(moments, 2, axis=1)
    return means + centre.T, np.maximum(squares - means**2, 0) * n / (n - 1)
