"""Resampled statistics against resamples that are really built, and their statistics by scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from probes.stats import cluster_bootstrap as cluster
from probes.stats.bootstrap import percentile_interval

SIZES = (5, 9, 1, 7)


def sample(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    models = np.repeat(np.arange(len(SIZES)), SIZES)
    x, y = generator.normal(size=(2, len(models)))
    x, y = (np.round(x), np.round(y + x)) if ties else (x, y + x)
    return models, x, y, y > 0.5


def built(models: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The rows of a resample, one after another."""
    return np.concatenate([np.flatnonzero(models == m) for m, times in enumerate(counts) for _ in range(times)])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_every_draw_is_the_statistic_of_its_resample(seed: int, ties: bool) -> None:
    models, x, y, positive = sample(seed, ties)
    counts = cluster.drawn_counts(len(SIZES), 6, seed)
    found = {
        "auc": cluster.auc_of_draws(positive, x, models, counts),
        "pearson": cluster.pearson(x, y, models, counts),
        "spearman": cluster.spearman(x, y, models, counts),
    }
    for draw, times in enumerate(counts):
        rows = built(models, times)
        one_class = positive[rows].all() or not positive[rows].any()
        constant = np.ptp(x[rows]) == 0 or np.ptp(y[rows]) == 0
        expected = {
            "auc": np.nan if one_class else roc_auc_score(positive[rows], x[rows]),
            "pearson": np.nan if constant else stats.pearsonr(x[rows], y[rows]).statistic,
            "spearman": np.nan if constant else stats.spearmanr(x[rows], y[rows]).statistic,
        }
        for name, value in expected.items():
            assert found[name][draw] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_counts_are_resamples() -> None:
    counts = cluster.drawn_counts(5, 4000, 1)
    assert (counts.sum(axis=1) == 5).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(5), abs=0.06)


def test_intervals_need_three_models_and_defined_draws() -> None:
    draws = np.linspace(0, 1, 1001)
    found = percentile_interval(0.4, draws, 3, "model", cluster.FEWEST_MODELS)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.025, 0.975))
    assert (
        percentile_interval(0.4, draws, 2, "model", cluster.FEWEST_MODELS).reason == "2 models: no interval over models"
    )
    assert percentile_interval(np.nan, draws, 3, "model", cluster.FEWEST_MODELS).reason == "undefined"
    mostly = np.where(np.arange(1001) < 600, np.nan, draws)
    assert percentile_interval(0.4, mostly, 9, "model").reason == "undefined in most resamples of models"
    assert np.isnan(percentile_interval(0.4, mostly, 9, "model").low)


def test_held_out_scores_take_their_sign_from_the_other_models() -> None:
    models = np.repeat([0, 1, 2, 3], 8)
    x = np.tile(np.arange(8.0), 4)
    positive = x > 3.5
    assert roc_auc_score(positive, cluster.held_out_scores(positive, x, models)) > 0.99
    # One model in which the relation is the other way round: the others' orientation is applied to it.
    turned = np.where(models == 3, ~positive, positive)
    scores = cluster.held_out_scores(turned, x, models)
    assert roc_auc_score(turned[models == 3], scores[models == 3]) == 0.0
    assert roc_auc_score(turned[models == 0], scores[models == 0]) == 1.0


def test_a_useless_predictor_is_not_pushed_below_one_half() -> None:
    """Models differ in their share of positives and the predictor says nothing: an intercept would give AUC → 0."""
    generator, found = np.random.default_rng(0), []
    models = np.repeat(np.arange(6), 20)
    for _ in range(60):
        positive = generator.random(120) < np.repeat([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], 20)
        found.append(roc_auc_score(positive, cluster.held_out_scores(positive, generator.normal(size=120), models)))
    assert 0.42 < np.mean(found) < 0.55


def test_held_out_scores_are_undefined_without_both_classes() -> None:
    models, x = np.repeat([0, 1], 4), np.arange(8.0)
    positive = np.array([1, 0, 1, 0, 0, 0, 0, 0], dtype=bool)
    scores = cluster.held_out_scores(positive, x, models)
    assert np.isnan(scores[:4]).all()
    assert np.isfinite(scores[4:]).all()


def test_held_out_r2_by_hand() -> None:
    models = np.repeat([0, 1, 2], 3)
    x = np.array([0.0, 1, 2, 0, 1, 2, 0, 1, 3])
    assert cluster.held_out_r2(2 * x + 1, x, models) == pytest.approx(1.0)
    y = np.array([1.0, 2, 4, 0, 1, 1, 5, 3, 2])
    residual = deviation = 0.0
    for held in range(3):
        train = models != held
        slope, intercept = np.polyfit(x[train], y[train], 1)
        residual += ((y[~train] - slope * x[~train] - intercept) ** 2).sum()
        deviation += ((y[~train] - y[train].mean()) ** 2).sum()
    assert cluster.held_out_r2(y, x, models) == pytest.approx(1 - residual / deviation)
    assert np.isnan(cluster.held_out_r2(y, x, np.zeros(9, dtype=int)))
    assert np.isnan(cluster.held_out_r2(np.ones(9), x, models))
