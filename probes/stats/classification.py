"""How well a score finds positives: AUC, recall, matched buckets, each with its interval."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from sklearn.metrics import roc_auc_score

from interp.errors import InputError
from probes.stats.bootstrap import percentile_interval
from probes.stats.cluster_bootstrap import auc_of_draws
from probes.stats.intervals import Estimate, wilson
from probes.stats.random_draws import draw_p


def auc(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], draws: int = 2000, seed: int = 0
) -> Estimate:
    """Area under the ROC curve, with a percentile interval over a bootstrap stratified by class."""
    defined = np.isfinite(scores)
    positive, scores = positive[defined], scores[defined]
    n = len(positive)
    if positive.sum() in (0, n):
        return Estimate(np.nan, n=n, reason="one class only")
    counts = _drawn_within_classes(positive, draws, seed)
    resampled = auc_of_draws(positive, scores, np.arange(n), counts)
    return percentile_interval(float(roc_auc_score(positive, scores)), resampled, n, "row")


def _drawn_within_classes(positive: Bool[np.ndarray, " n"], draws: int, seed: int) -> Int[np.ndarray, "draws n"]:
    """How often each row is in each resample, which has as many rows of either class as there are."""
    generator = np.random.default_rng(seed)
    counts = np.zeros((draws, len(positive)), dtype=int)
    for rows in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        np.add.at(counts, (np.arange(draws)[:, None], generator.choice(rows, (draws, len(rows)))), 1)
    return counts


def recall(danger: Bool[np.ndarray, " n"], flagged: Bool[np.ndarray, " n"]) -> Estimate:
    """Share of the danger rows that are flagged, with Wilson's interval."""
    n = int(danger.sum())
    if n == 0:
        return Estimate(np.nan, reason="no danger rows")
    return wilson(int((danger & flagged).sum()), n)


def matched_bucket(risk: Float[np.ndarray, " n"], danger: Bool[np.ndarray, " n"], size: int) -> Estimate:
    """Recall of danger when a single feature flags as many rows as the index does: the largest."""
    if not 0 <= size <= len(risk):
        raise InputError(f"A bucket of {size} of {len(risk)} rows", "0 ≤ size ≤ rows")
    flagged = np.zeros(len(risk), dtype=bool)
    flagged[np.argsort(-np.nan_to_num(risk, nan=-np.inf), kind="stable")[:size]] = True
    return recall(danger, flagged)


def auc_permutation_p(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], draws: int = 10_000, seed: int = 0
) -> float:
    """One-sided p that labels dealt at random separate the scores as well; NaN where there is one class."""
    defined = np.isfinite(scores)
    positive, ranks = positive[defined], stats.rankdata(scores[defined])
    if positive.sum() in (0, len(positive)):
        return np.nan
    shuffled = np.random.default_rng(seed).permuted(np.tile(positive, (draws, 1)), axis=1)
    # The rank sum of the positives orders label assignments exactly as their AUC does.
    return draw_p(float(positive @ ranks), shuffled @ ranks)
