"""How well a score finds positives: AUC, recall, matched buckets, each with its interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from sklearn.metrics import roc_auc_score

from interp.errors import InputError
from probes.stats.intervals import TOLERANCE
from probes.stats.paired_tests import wilson


class Estimate(NamedTuple):
    """A statistic with its 95 % bounds; NaN with a reason where it is undefined."""

    value: float
    low: float
    high: float
    n: int
    reason: str


def auc(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], draws: int = 2000, seed: int = 0
) -> Estimate:
    """Area under the ROC curve, with a percentile interval over a bootstrap stratified by class."""
    defined = np.isfinite(scores)
    positive, scores = positive[defined], scores[defined]
    n_positive = int(positive.sum())
    if n_positive in (0, len(positive)):
        return Estimate(np.nan, np.nan, np.nan, len(positive), "one class only")
    generator = np.random.default_rng(seed)
    inside, outside = (generator.choice(scores[mask], (draws, mask.sum())) for mask in (positive, ~positive))
    low, high = np.quantile(_auc_of_draws(inside, outside), [0.025, 0.975])
    return Estimate(float(roc_auc_score(positive, scores)), float(low), float(high), len(positive), "")


def recall(danger: Bool[np.ndarray, " n"], flagged: Bool[np.ndarray, " n"]) -> Estimate:
    """Share of the danger rows that are flagged, with Wilson's interval."""
    n = int(danger.sum())
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0, "no danger rows")
    found = int((danger & flagged).sum())
    return Estimate(found / n, *wilson(found, n), n, "")


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
    return float(((shuffled @ ranks >= positive @ ranks - TOLERANCE).sum() + 1) / (draws + 1))


def _auc_of_draws(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    n, m = inside.shape[1], outside.shape[1]
    ranks = stats.rankdata(np.concatenate([inside, outside], axis=1), axis=1)
    return (ranks[:, :n].sum(axis=1) - n * (n + 1) / 2) / (n * m)
