"""Statistics under resampling of whole models, exactly and without building a single resample.

A resample of models is a vector of how often each was drawn; every statistic here is a function of these counts and of
sums within models (or pairs of models), so a thousand draws are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from probes.stats.bootstrap import percentile_interval

FEWEST_MODELS = 3
"""An interval over fewer models says nothing."""
DRAWS = 2000

DrawCounts = Int[np.ndarray, "draws models"]


def drawn_counts(n_models: int, draws: int = DRAWS, seed: int = 0) -> DrawCounts:
    """How often each of the models is in each resample."""
    return np.random.default_rng(seed).multinomial(n_models, np.full(n_models, 1 / n_models), size=draws)


def auc_of_draws(
    positive: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"], models: Int[np.ndarray, " n"], counts: DrawCounts
) -> Float[np.ndarray, " draws"]:
    """Area under the ROC curve in each resample, ties half; NaN where a resample has one class only.

    Args:
        positive: labels.
        scores: larger for the positive.
        models: index of each row's model.
        counts: see `drawn_counts`; all ones give the statistic of the sample itself.
    """
    above = np.sign(scores[positive][:, None] - scores[~positive][None, :]) / 2 + 0.5
    n_models = counts.shape[1]
    inside, outside = _membership(models[positive], n_models), _membership(models[~positive], n_models)
    weights = counts.astype(float)
    won = ((weights @ (inside @ above @ outside.T)) * weights).sum(axis=1)
    pairs = (weights @ inside.sum(axis=1)) * (weights @ outside.sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return won / pairs


def pearson(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], models: Int[np.ndarray, " n"], counts: DrawCounts
) -> Float[np.ndarray, " draws"]:
    """Pearson's coefficient in each resample; NaN where a column is constant."""
    weights = counts[:, models].astype(float)
    shape = weights.shape
    return _weighted_pearson(np.broadcast_to(x, shape), np.broadcast_to(y, shape), weights)


def spearman(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], models: Int[np.ndarray, " n"], counts: DrawCounts
) -> Float[np.ndarray, " draws"]:
    """Spearman's coefficient in each resample, which ranks the resample's own rows, ties at their mean rank."""
    weights = counts[:, models].astype(float)
    return _weighted_pearson(_ranks(x, models, counts), _ranks(y, models, counts), weights)


def _ranks(values: np.ndarray, models: np.ndarray, counts: np.ndarray) -> Float[np.ndarray, "draws n"]:
    """Mean rank of each row among a resample's rows, up to the same constant for all."""
    below = np.sign(values[None, :] - values[:, None]) / 2 + 0.5  # [other, row]: 1 below, ½ tied
    return counts.astype(float) @ (_membership(models, counts.shape[1]) @ below)


def _weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        dx = x - (weights * x).sum(axis=1, keepdims=True) / total
        dy = y - (weights * y).sum(axis=1, keepdims=True) / total
        spread_x, spread_y = (weights * dx**2).sum(axis=1), (weights * dy**2).sum(axis=1)
        coefficients = (weights * dx * dy).sum(axis=1) / np.sqrt(spread_x * spread_y)
    # What rounding leaves of a constant column is no spread.
    floor = 1e-18 * np.maximum((weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1), 1e-300)
    return np.where(spread_x * spread_y > floor, coefficients, np.nan)


def _membership(models: np.ndarray, n_models: int) -> Float[np.ndarray, "models n"]:
    return (models[None, :] == np.arange(n_models)[:, None]).astype(float)


def held_out_scores(
    positive: Bool[np.ndarray, " n"], x: Float[np.ndarray, " n"], models: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Each row scored by a logistic regression fitted on the other models, without its intercept.

    The intercept is the other models' share of positives, which is low exactly where the held-out model's is high;
    leaving it in would push the pooled AUC of a useless predictor below one half. NaN where the other models have one
    class only.
    """
    from sklearn.linear_model import LogisticRegression

    scores = np.full(len(x), np.nan)
    for train, test in _folds(models):
        spread = x[train].std()
        if 0 < positive[train].sum() < train.sum() and spread > 0:
            scaled = (x - x[train].mean()) / spread
            fitted = LogisticRegression().fit(scaled[train, None], positive[train])
            scores[test] = fitted.coef_[0, 0] * scaled[test]
    return scores


def held_out_r2(y: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"], models: Int[np.ndarray, " n"]) -> float:
    """1 − squared error / squared deviation from the other models' mean: y of each model predicted by a line through
    the others. Negative where their line is worse than their mean; NaN with one model or nothing to explain."""
    residual = deviation = 0.0
    for train, test in _folds(models):
        if np.ptp(x[train]) == 0 or train.sum() < 3:
            return np.nan
        line = stats.linregress(x[train], y[train])
        residual += float(((y[test] - line.intercept - line.slope * x[test]) ** 2).sum())
        deviation += float(((y[test] - y[train].mean()) ** 2).sum())
    return 1 - residual / deviation if deviation > 0 else np.nan


def _folds(models: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    present = np.unique(models)
    return [(models != model, models == model) for model in present] if len(present) > 1 else []


def cluster_interval(
    table: pd.DataFrame,
    statistic: Callable[[pd.DataFrame], float],
    cluster: str = "model",
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float, int]:
    """Percentile interval of a statistic over cells, resampling whole models: the cells of one are not independent.

    Returns:
        low, high, and the number of draws on which the statistic was defined. NaN where it was on fewer than half of
        them, or where there are fewer than three clusters.
    """
    groups = [rows for _, rows in table.groupby(cluster)]
    if len(groups) < FEWEST_MODELS:
        return np.nan, np.nan, 0
    generator = np.random.default_rng(seed)
    samples = (pd.concat([groups[i] for i in generator.integers(len(groups), size=len(groups))]) for _ in range(draws))
    values = np.array([statistic(sample) for sample in samples])
    bounds = percentile_interval(statistic(table), values, len(groups), cluster)
    return bounds.low, bounds.high, int(np.isfinite(values).sum())
