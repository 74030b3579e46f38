"""Is RTSI right on rows that it was not fitted on? Folds by row, model, family or format; simpler screens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import BaseCrossValidator

from interp.errors import InputError
from probes.paired import wilson
from probes.regimes import TOLERANCE
from probes.rtsi_index import RTSI

MATERIAL_LOSS = -0.05
"""A refusal-rate delta at or below this is a material loss."""


class HeldOut(NamedTuple):
    """Scores of rows by an index that was refitted without them.

    Attributes:
        scores: [n], NaN where the fold could not be fitted or a feature is undefined.
        folds: a row a fold: `held_out`, `n_train`, `n_test`, `n_loss_train`, `n_loss_test`, `note`.
    """

    scores: Float[np.ndarray, " n"]
    folds: pd.DataFrame


class Estimate(NamedTuple):
    """A statistic with its 95 % bounds; NaN with a reason where it is undefined."""

    value: float
    low: float
    high: float
    n: int
    reason: str


def material_loss(refusal_rate_delta: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Refusals fell by 5 pp or more, within the tolerance: 93 − 98 of 100 is a material loss."""
    return refusal_rate_delta <= MATERIAL_LOSS + TOLERANCE


def cross_validate(
    index: RTSI,
    deltas: pd.DataFrame,
    refusal_rate_delta: Float[np.ndarray, " n"],
    splitter: BaseCrossValidator,
    groups: pd.Series | None = None,
) -> HeldOut:
    """Score each row by a clone of the index whose weights and bounds were fitted without the row's fold.

    A fold whose training rows are all, or none of them, material losses is kept and noted; so is one that cannot be
    fitted, whose rows get no score.
    """
    scores, rows = np.full(len(deltas), np.nan), []
    loss = material_loss(refusal_rate_delta)
    for train, test in splitter.split(deltas, refusal_rate_delta, groups):
        note = _one_class("trains", loss[train])
        try:
            fitted = clone(index).fit(deltas.iloc[train], refusal_rate_delta[train])
            scores[test] = fitted.score_samples(deltas.iloc[test])
        except InputError as error:
            note = f"not fitted: {error}"
        held_out = ", ".join(map(str, test if groups is None else groups.iloc[test].unique()))
        n_loss = {"n_loss_train": int(loss[train].sum()), "n_loss_test": int(loss[test].sum())}
        rows.append({"held_out": held_out, "n_train": len(train), "n_test": len(test), **n_loss, "note": note})
    return HeldOut(scores, pd.DataFrame(rows))


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


def permutation_p(
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


def _one_class(verb: str, loss: np.ndarray) -> str:
    return "" if 0 < loss.sum() < len(loss) else f"{verb} on one class"
