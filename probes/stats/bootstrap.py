"""Bootstrap resamples: over the prompts of a cell, over the models of a matrix."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import InputError
from probes.stats.intervals import CONFIDENCE, Estimate

DRAWS = 10_000
KEPT_COUNTS = 2**22
"""The most counts of a set of resamples that the next statistic of as many prompts finds again: 32 MiB."""


def resampled_means(
    outcomes: Float[np.ndarray, "rows prompts"], draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, "draws rows"]:
    """Means over prompts drawn with replacement, the same prompts for all rows, so that differences stay paired.

    Args:
        outcomes: per prompt: 0 or 1, or any score. For deltas pass cell − baseline.
        draws: number of resamples.
        seed: of the draws.

    Raises:
        InputError: no prompts, or an undefined outcome.
    """
    n_prompts = outcomes.shape[1]
    if n_prompts == 0 or not np.isfinite(outcomes).all():
        raise InputError("An outcome is missing or there are no prompts", "a finite outcome for each cell and prompt")
    drawn = _times_drawn if n_prompts * draws <= KEPT_COUNTS else _times_drawn.__wrapped__
    return drawn(n_prompts, draws, seed) @ outcomes.T / n_prompts


@lru_cache(maxsize=4)
def _times_drawn(n_prompts: int, draws: int, seed: int) -> Float[np.ndarray, "draws prompts"]:
    """How often each prompt is in each resample."""
    uniform = np.full(n_prompts, 1 / n_prompts)
    return np.random.default_rng(seed).multinomial(n_prompts, uniform, size=draws).astype(float)


def resampled_rates(
    rates: Float[np.ndarray, " rows"], n: Float[np.ndarray, " rows"], draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, "draws rows"]:
    """Rates over prompts drawn with replacement, where only each row's rate and n are known: rows are independent.

    Resampling n outcomes of which a share is 1 is a binomial draw. Without the outcomes the pairing of a cell with its
    baseline is lost, and intervals of deltas are wider than they need to be.
    """
    successes = np.random.default_rng(seed).binomial(n.astype(int), np.clip(rates, 0, 1), size=(draws, len(rates)))
    return successes / n


def deltas_from_rates(
    resampled: Float[np.ndarray, "draws rows"], matrix: pd.DataFrame
) -> Float[np.ndarray, "draws rows"]:
    """Resampled cell − resampled baseline, for a matrix with `model`, `quantization` and `baseline`."""
    keys = pd.MultiIndex.from_frame(matrix[["model", "quantization"]])
    baselines = keys.get_indexer(pd.MultiIndex.from_arrays([matrix["model"], matrix["baseline"]]))
    return resampled - resampled[:, baselines]


def percentile_interval(
    value: float, draws: Float[np.ndarray, " draws"], n: int = 0, unit: str = "prompt", fewest: int = 0
) -> Estimate:
    """A statistic between the 2.5th and 97.5th percentile of its resamples; draws without a value are left out.

    Its bounds are undefined where the statistic is, where fewer than half of the draws have a value, and where fewer
    units were resampled than an interval needs.

    Args:
        value: the statistic of the sample itself.
        draws: the statistic of each resample, or of each random set.
        n: how many units were resampled; 0 where that is not said.
        unit: what was resampled, a noun for the reason.
        fewest: so many units an interval needs.
    """
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(value):
        return Estimate(np.nan, n=n, reason="undefined")
    if n < fewest:
        return Estimate(float(value), n=n, reason=f"{n} {unit}{'s' * (n != 1)}: no interval over {unit}s")
    if not len(defined) or len(defined) < len(draws) / 2:
        return Estimate(float(value), n=n, reason=f"undefined in most resamples of {unit}s")
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(value), float(low), float(high), n)
