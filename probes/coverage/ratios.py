"""Relative errors on one kind of text over those on another, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

import numpy as np
from jaxtyping import Float64

from probes.coverage.energies import VARIANTS, Energies
from probes.stats.bootstrap import percentile_interval, resampled_means
from probes.stats.intervals import Estimate

Errors = Float64[np.ndarray, "draw linear variant"]
"""Root mean square relative to the output, of the texts themselves (draw 0) and of their resamples."""


def relative_errors(energies: Energies, seed: int) -> Errors:
    """The errors of each linear's variants, from their energies on some texts; those of "output" are 1.

    Args:
        energies: on these texts.
        seed: of the resamples.
    """
    rows = energies.flatten(0, 1).numpy()
    means = np.concatenate([rows.mean(1)[None], resampled_means(rows, seed=seed)])
    by_linear = means.reshape(len(means), *energies.shape[:2])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(by_linear / by_linear[:, :, :1])


def ratios(prompts: Errors, calibration: Errors) -> Mapping[str, Float64[np.ndarray, "draw linear"]]:
    """Errors on prompts over those on calibration texts, by variant.

    Returns:
        "error", "random" and "rounded", and "beyond", which is error / random.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        by_variant = prompts / calibration
        named = {name: by_variant[:, :, place] for place, name in enumerate(VARIANTS) if name != "output"}
        return named | {"beyond": named["error"] / named["random"]}


def together(by_linear: Float64[np.ndarray, "draw linear"]) -> Float64[np.ndarray, " draw"]:
    """The geometric mean over linears that have an error, so that each counts alike."""
    defined = by_linear[:, np.isfinite(by_linear[0]) & (by_linear[0] > 0)]
    return np.exp(np.log(defined).mean(1)) if defined.shape[1] else np.full(len(by_linear), nan)


def estimate(draws: Float64[np.ndarray, " draw"], n: int) -> Estimate:
    """The value of the texts themselves between percentiles of the resamples."""
    return percentile_interval(float(draws[0]), draws[1:], n, fewest=2)
