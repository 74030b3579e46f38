"""Does a probe see what the cell then does? Each metric against RTSI, the refusal delta and danger."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import roc_auc_score

from interp.errors import InputError
from probes.bootstrap import cluster_interval
from probes.pairings import COEFFICIENTS, correlate


class Test(NamedTuple):
    """A statistic with its p value; NaN with a reason where it is undefined."""

    statistic: float
    p: float
    n: int
    reason: str


def against_outcomes(
    table: pd.DataFrame,
    metrics: Sequence[str],
    outcomes: Sequence[str],
    group: str = "model",
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlation of each metric with each outcome over cells, with intervals that resample whole models.

    Returns:
        A row a (metric, outcome, method): `coefficient`, `p`, `n`, `low`, `high`, `reason`.
    """
    rows = []
    for metric, outcome, method in product(metrics, outcomes, COEFFICIENTS):

        def coefficient(sample: pd.DataFrame, m: str = metric, o: str = outcome, how: str = method) -> float:
            return correlate(sample[m], sample[o], how).coefficient

        found = correlate(table[metric], table[outcome], method)
        bounds = cluster_interval(table, coefficient, group, draws, seed)
        rows.append({"metric": metric, "outcome": outcome, "method": method, **found._asdict()} | _named(bounds))
    return pd.DataFrame(rows)


def against_danger(
    table: pd.DataFrame,
    metrics: Sequence[str],
    danger: str = "danger",
    group: str = "model",
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Danger rows against the rest, for each metric.

    Returns:
        A row a metric: `mann_whitney_u`, `p` (two-sided), `auc` (larger = danger) with `low` and `high` that resample
        whole models, `n_danger`, `n_rest`, `reason`.
    """
    rows = []
    for metric in metrics:
        defined = table[table[metric].notna()]
        test, auc = mann_whitney(defined[metric], defined[danger]), _auc(defined, metric, danger)
        bounds = cluster_interval(defined, partial(_auc, metric=metric, danger=danger), group, draws, seed)
        n_danger = int(defined[danger].sum())
        row = {"metric": metric, "mann_whitney_u": test.statistic, "p": test.p, "auc": auc, **_named(bounds)}
        rows.append(row | {"n_danger": n_danger, "n_rest": len(defined) - n_danger, "reason": test.reason})
    return pd.DataFrame(rows)


def mann_whitney(values: pd.Series, danger: pd.Series) -> Test:
    """Two-sided Mann–Whitney U of the values in danger rows against the rest."""
    mask = danger.to_numpy(dtype=bool)
    inside, outside = values[mask].dropna(), values[~mask].dropna()
    if inside.empty or outside.empty:
        return Test(np.nan, np.nan, len(inside) + len(outside), "danger or rest has no rows")
    result = stats.mannwhitneyu(inside, outside, alternative="two-sided")
    return Test(float(result.statistic), float(result.pvalue), len(inside) + len(outside), "")


def ratio_above_one(ratios: pd.Series) -> Test:
    """One-sided one-sample t test that the safety-neuron ratio exceeds 1. Cells of one model are not independent."""
    values = ratios.dropna()
    if len(values) < 2 or np.ptp(values.to_numpy()) == 0:
        return Test(np.nan, np.nan, len(values), "fewer than two different values")
    result = stats.ttest_1samp(values, 1.0, alternative="greater")
    return Test(float(result.statistic), float(result.pvalue), len(values), "")


def cross_correlations(table: pd.DataFrame, metrics: Sequence[str], method: str = "pearson") -> pd.DataFrame:
    """Every metric against every other: [metric, metric], NaN where undefined."""
    missing = [metric for metric in metrics if metric not in table]
    if missing:
        raise InputError(f"The table has no column {', '.join(missing)}", f"among {', '.join(map(str, table.columns))}")
    values = [[correlate(table[a], table[b], method).coefficient for b in metrics] for a in metrics]
    return pd.DataFrame(values, index=pd.Index(metrics, name="metric"), columns=list(metrics))


def _auc(table: pd.DataFrame, metric: str, danger: str) -> float:
    labels = table[danger].to_numpy(dtype=bool)
    return float(roc_auc_score(labels, table[metric])) if labels.any() and not labels.all() else np.nan


def _named(bounds: tuple[float, float, int]) -> dict[str, float | int]:
    return {"low": bounds[0], "high": bounds[1], "n_draws": bounds[2]}
