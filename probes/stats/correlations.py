"""Quality against safety: the same relation within models, pooled, by mixed model, and with groups left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pingouin
import statsmodels.formula.api as formula
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from interp.errors import InputError
from probes.stats.cluster_bootstrap import cluster_interval

MINIMUM_POINTS = 3
COEFFICIENTS: dict[str, Callable[..., Any]] = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}


class Correlation(NamedTuple):
    """A coefficient with its two-sided p value; NaN with a reason where it is undefined."""

    coefficient: float
    p: float
    n: int
    reason: str


def correlate(x: pd.Series, y: pd.Series, method: str = "pearson") -> Correlation:
    """Pearson's or Spearman's coefficient over the rows where both are defined."""
    defined = x.notna() & y.notna()
    x, y = x[defined].astype(float), y[defined].astype(float)
    reason = _degenerate(x, y)
    if reason:
        return Correlation(np.nan, np.nan, len(x), reason)
    result = COEFFICIENTS[method](x, y)
    return Correlation(float(result.statistic), float(result.pvalue), len(x), "")


def within_groups(table: pd.DataFrame, x: str, y: str, method: str = "pearson", group: str = "model") -> pd.DataFrame:
    """`correlate` in each group: a row a group with `coefficient`, `p`, `n`, `reason`."""
    rows = {name: correlate(rows[x], rows[y], method) for name, rows in table.groupby(group, sort=False)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=Correlation._fields).rename_axis(group).reset_index()


def sign_reversal(coefficients: Iterable[float]) -> bool:
    """Whether at least one coefficient is positive and at least one negative; undefined ones do not count."""
    values = np.array(list(coefficients), dtype=float)
    return bool((values > 0).any() and (values < 0).any())


def repeated_measures(table: pd.DataFrame, x: str, y: str, group: str = "model") -> Correlation:
    """Repeated-measures correlation (Bakdash and Marusich 2017): one common slope, an intercept a group."""
    rows = table[[group, x, y]].dropna()
    rows = rows[rows.groupby(group)[x].transform("size") >= 2]
    if rows[group].nunique() < 2:
        return Correlation(np.nan, np.nan, len(rows), "fewer than two groups with two points each")
    centred = rows[[x, y]] - rows.groupby(group)[[x, y]].transform("mean")
    reason = _degenerate(centred[x], centred[y])
    if reason:
        return Correlation(np.nan, np.nan, len(rows), f"within groups: {reason}")
    result = pingouin.rm_corr(data=rows, x=x, y=y, subject=group).iloc[0]
    p = next(result[name] for name in ("pval", "p_val") if name in result)
    return Correlation(float(result["r"]), float(p), len(rows), "")


class Slope(NamedTuple):
    """A slope with its 95 % bounds.

    `converged` is None where nothing was fitted iteratively; `reason` holds the optimizer's warnings.
    """

    slope: float
    low: float
    high: float
    p: float
    n: int
    converged: bool | None
    reason: str


def mixed_effects(table: pd.DataFrame, x: str, y: str, group: str = "model") -> Slope:
    """Slope of y on x with a random intercept per group, by REML, with the state of convergence."""
    rows = table[[group, x, y]].dropna().set_axis(["group", "x", "y"], axis=1)
    reason = _degenerate(rows["x"], rows["y"]) or ("fewer than two groups" if rows["group"].nunique() < 2 else "")
    if reason:
        return Slope(np.nan, np.nan, np.nan, np.nan, len(rows), None, reason)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        try:
            fitted = formula.mixedlm("y ~ x", rows, groups=rows["group"]).fit(reml=True)
        except np.linalg.LinAlgError as error:
            return Slope(np.nan, np.nan, np.nan, np.nan, len(rows), False, f"singular: {error}")
    low, high = fitted.conf_int().loc["x"]
    messages = "; ".join(sorted({str(warning.message) for warning in caught}))
    slope, p = float(fitted.params["x"]), float(fitted.pvalues["x"])
    return Slope(slope, float(low), float(high), p, len(rows), bool(fitted.converged), messages)


def regress(table: pd.DataFrame, x: str, y: str) -> Slope:
    """Ordinary least squares of y on x, for example on `bits_per_weight`."""
    rows = table[[x, y]].dropna().set_axis(["x", "y"], axis=1)
    reason = _degenerate(rows["x"], rows["y"])
    if reason:
        return Slope(np.nan, np.nan, np.nan, np.nan, len(rows), None, reason)
    fitted = formula.ols("y ~ x", rows).fit()
    low, high = fitted.conf_int().loc["x"]
    return Slope(float(fitted.params["x"]), float(low), float(high), float(fitted.pvalues["x"]), len(rows), None, "")


def leave_one_out(table: pd.DataFrame, x: str, y: str, column: str, method: str = "pearson") -> pd.DataFrame:
    """Pooled correlation with each value of a column left out: `left_out`, `coefficient`, `p`, `n`, `reason`."""
    if column not in table:
        raise InputError(
            f"The table has no column {column} to leave out", f"one of {', '.join(map(str, table.columns))}"
        )
    rows = {value: correlate(rest[x], rest[y], method) for value, rest in _without_each(table, column)}
    return (
        pd.DataFrame.from_dict(rows, orient="index", columns=Correlation._fields).rename_axis("left_out").reset_index()
    )


def asymmetry(quality_delta: pd.Series, refusal_delta: pd.Series) -> pd.Series:
    """|refusal delta| / |quality delta|; infinite where only quality stayed, NaN where neither moved."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return refusal_delta.abs() / quality_delta.abs()


def pairing(
    table: pd.DataFrame, quality: str, safety: str, group: str = "model"
) -> dict[str, float | int | bool | str]:
    """Everything about one pair of columns, as one row; the table holds no baselines."""
    within = {method: within_groups(table, quality, safety, method, group) for method in COEFFICIENTS}
    pooled = {method: correlate(table[quality], table[safety], method) for method in COEFFICIENTS}
    repeated, mixed = repeated_measures(table, quality, safety, group), mixed_effects(table, quality, safety, group)
    row: dict[str, float | int | bool | str] = {"quality": quality, "safety": safety, "n": pooled["pearson"].n}
    for method in COEFFICIENTS:
        coefficients = within[method]["coefficient"]
        row |= {f"{method}_{name}": value for name, value in zip(within[method][group], coefficients, strict=True)}
        row |= {f"sign_reversal_{method}": sign_reversal(coefficients)}
        row |= {f"pooled_{method}": pooled[method].coefficient, f"pooled_{method}_p": pooled[method].p}
    row |= {"repeated_measures": repeated.coefficient, "repeated_measures_p": repeated.p}
    row |= {"mixed_slope": mixed.slope, "mixed_p": mixed.p, "mixed_converged": mixed.converged is True}
    for column in dict.fromkeys((group, "quantization")):
        if column in table:
            left = leave_one_out(table, quality, safety, column)["coefficient"]
            row |= {f"without_one_{column}_min": left.min(), f"without_one_{column}_max": left.max()}
    reasons = [pooled["pearson"].reason, repeated.reason, mixed.reason, *within["pearson"]["reason"]]
    return row | {"reason": "; ".join(dict.fromkeys(filter(None, reasons)))}


def pairings(
    table: pd.DataFrame, qualities: Sequence[str], safeties: Sequence[str], group: str = "model"
) -> pd.DataFrame:
    """`pairing` of each quality column with each safety column: the study's 36 are 3 × 6 on levels and on deltas."""
    return pd.DataFrame([pairing(table, quality, safety, group) for quality, safety in product(qualities, safeties)])


def _without_each(table: pd.DataFrame, column: str) -> Iterable[tuple[object, pd.DataFrame]]:
    return ((value, table[table[column] != value]) for value in table[column].dropna().unique())


def _degenerate(x: pd.Series, y: pd.Series) -> str:
    if len(x) < MINIMUM_POINTS:
        return f"fewer than {MINIMUM_POINTS} points"
    constant = [name for name, values in (("first", x), ("second", y)) if np.ptp(values.to_numpy()) < 1e-12]
    return f"the {' and the '.join(constant)} column is constant" if constant else ""


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

        correlation = correlate(table[metric], table[outcome], method)
        bounds = cluster_interval(table, coefficient, group, draws, seed)
        rows.append({"metric": metric, "outcome": outcome, "method": method, **correlation._asdict()} | _named(bounds))
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
