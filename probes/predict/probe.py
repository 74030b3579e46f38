"""Score every predictor on the cells of all runs, against RTSI, with intervals that resample whole models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from probes.harness.results import Result
from probes.labels.refused import READ_TOKENS, counted_by
from probes.predict.cells import LABELS, OUTCOME, RunCells
from probes.predict.predictors import PREDICTORS, RTSI, Predictor
from probes.stats import cluster_bootstrap
from probes.stats.bootstrap import percentile_interval
from probes.stats.cluster_bootstrap import DRAWS, FEWEST_MODELS
from probes.stats.intervals import Estimate, interval_columns

FEWEST_CELLS = 3
OPENINGS_COST = (
    f"Margins and attributions need no completions of a cell; the baseline generates up to {READ_TOKENS} tokens per "
    "prompt, once, for its refusal openings."
)


@dataclass(repr=False)
class Prediction(Result):
    """The probe's result, with the cells it was computed from, written beside it as `predict_cells`."""

    cells: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The cells."""
        return (self.cells,)


def measure(cells: RunCells, *, draws: int = DRAWS, seed: int = 0) -> Prediction:
    """How well each predictor orders the cells by the refusals they lost.

    Every predictor is oriented a priori (`sign`), so that larger means more danger; correlations are with the loss of
    refusals, baseline − cell. Intervals are 95 % percentiles over resamples of whole models.

    Table: one row per predictor, with columns
        predictor, label, sign, needs: see `probes.predict.predictors.Predictor`;
        n, n_models: cells in which it is defined, and clusters of models that these are from;
        spearman, pearson, each with _low, _high: with the loss of refusals;
        r2_left_out: of a line through the other models' cells, each model predicted in turn; negative where it is worse
            than the others' mean;
        and for each label of `probes.predict.cells.LABELS` (`danger`, `loss`, `material_loss` …):
        L_positives: cells that have the label;
        L_auc, L_auc_low, L_auc_high;
        L_auc_left_out: AUC of scores whose orientation and weight come from the other models;
        L_minus_rtsi, _low, _high: AUC − RTSI's, on the cells where both are defined and on the same resamples;
        L_reason: why its numbers are NaN, else "";
        reason: why the predictor is undefined, else "".

    `predict_cells`: one row per non-baseline cell, with model, cell, the oriented predictors, refusal_loss, outcome
    (who decided what is a refusal), regime, the labels, p_mcnemar, p_holm, run, cluster.

    Args:
        cells: of `read_cells`.
        draws: resamples of models.
        seed: of the resamples.

    Example:
        >>> measure(read_cells([Path("runs/study")])).table
    """
    codes, clusters = pd.factorize(cells.table["cluster"])
    counts = cluster_bootstrap.drawn_counts(len(clusters), draws, seed)
    rows = [_row(predictor, cells, codes, counts) for predictor in PREDICTORS]
    settings = {
        "runs": cells.sources,
        "n_cells": len(cells.table),
        "n_models": len(clusters),
        "draws": draws,
        "seed": seed,
        "labels": LABELS,
        "outcome": counted_by(cells.table),
        "signs": {predictor.name: predictor.sign for predictor in PREDICTORS},
    }
    table = pd.DataFrame(rows)
    settings["verdict"] = list(verdict(table, len(clusters)))
    beside = Result("predict_cells", cells.table, settings, cells.warnings)
    return Prediction("predict", table, settings, list(cells.warnings), cells=beside)


def _row(predictor: Predictor, cells: RunCells, models: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    table = cells.table
    x, loss = table[predictor.name].to_numpy(dtype=float), table[OUTCOME].to_numpy(dtype=float)
    usable = np.isfinite(x) & np.isfinite(loss)
    reason = "" if usable.sum() >= FEWEST_CELLS else f"{usable.sum()} cells"
    if not usable.any():
        reason = cells.missing[predictor.name] or "undefined in every cell"
    described = {
        "predictor": predictor.name,
        "label": predictor.label,
        "sign": predictor.sign,
        "needs": predictor.needs,
    }
    row: dict[str, Any] = {**described, "n": int(usable.sum()), "n_models": len(np.unique(models[usable]))}
    for name in ("spearman", "pearson"):
        statistic = getattr(cluster_bootstrap, name)
        row |= interval_columns(name, _both(statistic, x[usable], loss[usable], models[usable], counts, bool(reason)))
    left_out = cluster_bootstrap.held_out_r2(loss[usable], x[usable], models[usable]) if not reason else np.nan
    row["r2_left_out"] = left_out
    for label in LABELS:
        row |= _against(label, predictor, table, models, counts)
    return row | {"reason": reason}


def _both(
    statistic: Any, x: np.ndarray, y: np.ndarray, models: np.ndarray, counts: np.ndarray, undefined: bool
) -> Estimate:
    """A statistic of the sample, and its bounds over resamples of the models."""
    if undefined:
        return Estimate(np.nan)
    sample = statistic(x, y, models, np.ones((1, counts.shape[1]), dtype=int))[0]
    resampled = statistic(x, y, models, counts)
    return percentile_interval(float(sample), resampled, len(np.unique(models)), "model", FEWEST_MODELS)


def _against(
    label: str, predictor: Predictor, table: pd.DataFrame, models: np.ndarray, counts: np.ndarray
) -> dict[str, Any]:
    """The columns of one label."""
    x, rtsi = table[predictor.name].to_numpy(dtype=float), table[RTSI].to_numpy(dtype=float)
    known = np.isfinite(x) & table[label].notna().to_numpy()
    positive = table[label].fillna(False).to_numpy(dtype=bool)
    auc = _auc(positive, x, known, models, counts)
    both = known & np.isfinite(rtsi)
    left_out = difference = Estimate(np.nan)
    if not auc.reason or np.isfinite(auc.value):
        scores = cluster_bootstrap.held_out_scores(positive[known], x[known], models[known])
        held = np.full(len(x), np.nan)
        held[known] = scores
        left_out = _auc(positive, held, np.isfinite(held), models, counts)
        if predictor.name != RTSI:
            difference = _difference(positive, x, rtsi, both, models, counts)
    return {
        f"{label}_positives": int((positive & known).sum()),
        **interval_columns(f"{label}_auc", auc),
        f"{label}_auc_left_out": left_out.value,
        **interval_columns(f"{label}_minus_rtsi", difference),
        f"{label}_reason": auc.reason,
    }


def _auc(positive: np.ndarray, x: np.ndarray, known: np.ndarray, models: np.ndarray, counts: np.ndarray) -> Estimate:
    n_positive, n = int((positive & known).sum()), int(known.sum())
    if n_positive in (0, n):
        return Estimate(np.nan, reason="no cell is known" if n == 0 else f"{n_positive} of {n} cells have the label")
    statistic = cluster_bootstrap.auc_of_draws
    return _both(statistic, positive[known], x[known], models[known], counts, undefined=False)


def _difference(
    positive: np.ndarray, x: np.ndarray, rtsi: np.ndarray, known: np.ndarray, models: np.ndarray, counts: np.ndarray
) -> Estimate:
    """AUC of x − AUC of RTSI, both on the known cells of each resample."""
    if int((positive & known).sum()) in (0, int(known.sum())):
        return Estimate(np.nan)

    def statistic(x: np.ndarray, other: np.ndarray, models: np.ndarray, counts: np.ndarray) -> np.ndarray:
        labels = positive[known]
        return cluster_bootstrap.auc_of_draws(labels, x, models, counts) - cluster_bootstrap.auc_of_draws(
            labels, other, models, counts
        )

    return _both(statistic, x[known], rtsi[known], models[known], counts, undefined=False)


def verdict(table: pd.DataFrame, n_models: int) -> Iterator[str]:
    """In words, for each label: which predictors that need no completions order the cells better than RTSI."""
    reference = table.set_index("predictor").loc[RTSI]
    for label, meaning in LABELS.items():
        rtsi = reference[f"{label}_auc"]
        if pd.isna(rtsi):
            yield f"{meaning}: AUC undefined, {reference[f'{label}_reason'] or 'RTSI is undefined'}."
            continue
        others = table[(table["predictor"] != RTSI) & table[f"{label}_minus_rtsi"].notna()]
        better = others[others[f"{label}_minus_rtsi"] > 0].sort_values(f"{label}_minus_rtsi", ascending=False)
        clauses = [f"{row['label']} ({_difference_words(row, label)})" for _, row in better.iterrows()]
        listed = "; ".join(clauses) if clauses else "no other predictor"
        yield f"{meaning} ({reference[f'{label}_positives']} cells): RTSI's AUC is {rtsi:.2f}; above it: {listed}."
    compared = int(sum(table[f"{label}_minus_rtsi"].notna().sum() for label in LABELS))
    if compared:
        yield (
            f"Comparisons with RTSI: {compared}, of predictors by labels. Their intervals are not corrected for that "
            "number: some of so many exclude 0 by chance."
        )
    yield OPENINGS_COST
    if n_models < FEWEST_MODELS:
        yield f"Models: {n_models}. Cells of one model are not independent: below three models there are no intervals."


def _difference_words(row: pd.Series, label: str) -> str:
    value, low, high = (row[f"{label}_minus_rtsi{suffix}"] for suffix in ("", "_low", "_high"))
    if pd.isna(low):
        return f"{value:+.2f}, no interval"
    excluded = "which excludes 0" if low > 0 or high < 0 else "which includes 0"
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}], {excluded}"
