"""Do two labellers agree, does it matter for the regimes, and which completions should a second judge see?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from interp.errors import InputError
from probes.matrix.regimes import BASELINE, DANGER, STUDY, RegimeRule, regimes
from probes.stats.bootstrap import percentile_interval
from probes.stats.intervals import Estimate


class Agreement(NamedTuple):
    """Two labellers on the same items.

    Attributes:
        n: how many.
        agreement: share of items with equal labels.
        kappa: Cohen's κ with its bootstrap interval over items.
        confusion: first labeller's classes × second's, counts.
    """

    n: int
    agreement: float
    kappa: Estimate
    confusion: pd.DataFrame


def agreement(first: Sequence[object], second: Sequence[object], draws: int = 2000, seed: int = 0) -> Agreement:
    """Per cent agreement, Cohen's κ with a bootstrap interval, and the confusion of the classes.

    κ is undefined where both used one class only, except that identical labels agree perfectly: κ = 1.

    Raises:
        InputError: no items, different numbers of them, or a missing label.
    """
    a, b = pd.Series(list(first), dtype=object), pd.Series(list(second), dtype=object)
    if len(a) != len(b) or a.empty:
        raise InputError(f"{len(a)} and {len(b)} labels", "labels of the same items, at least one")
    if a.isna().any() or b.isna().any():
        raise InputError("A label is missing", "a label from both labellers for each item", "Leave such items out")
    classes = sorted({*a, *b}, key=str)
    codes = {label: code for code, label in enumerate(classes)}
    x, y = a.map(codes).to_numpy(dtype=int), b.map(codes).to_numpy(dtype=int)
    confusion = confusion_matrix(x, y, labels=range(len(classes)))
    named = pd.DataFrame(confusion, index=pd.Index(classes, name="first"), columns=pd.Index(classes, name="second"))
    return Agreement(len(x), float((x == y).mean()), _kappa(x, y, confusion, draws, seed), named)


def regime_changes(matrix: pd.DataFrame, other_refusal_delta: pd.Series, rule: RegimeRule = STUDY) -> pd.DataFrame:
    """Rows whose regime differs when another labeller's refusal deltas replace the matrix's.

    Returns:
        `model`, `quantization`, `regime`, `other_regime`, of the rows that change.
    """
    other = regimes(matrix.assign(refusal_rate_delta=other_refusal_delta), rule)
    table = matrix[["model", "quantization"]].assign(regime=regimes(matrix, rule), other_regime=other)
    return table[table["regime"] != table["other_regime"]].reset_index(drop=True)


def sampling_plan(items: pd.DataFrame, per_row: int, seed: int = 0) -> pd.DataFrame:
    """Which completions a second judge labels: all of danger and baseline rows, `per_row` of each other row.

    Args:
        items: one row a completion, with `model`, `quantization`, `regime`.
        per_row: how many of each other row (all, where it has fewer).
        seed: of the draw; the same seed and items give the same plan.

    Returns:
        The chosen rows of `items` in their order, with `stratum` ("full" or "sample") and `weight`, items / chosen of
        the row, by which an estimate over all completions weighs each label.
    """
    if per_row < 1:
        raise InputError(f"{per_row} completions for each row", "at least one")
    full = items["regime"].isin([BASELINE, *DANGER])
    positions = pd.Series(np.arange(len(items)), index=items.index)
    generator = np.random.default_rng(seed)
    sampled_positions: list[int] = []
    weight = np.ones(len(items))
    for _, rows in positions.groupby([items["model"], items["quantization"], full]):
        taken = rows.to_numpy()
        if not full.iloc[taken[0]] and len(taken) > per_row:
            weight[taken] = len(taken) / per_row
            taken = generator.choice(taken, per_row, replace=False)
        sampled_positions.extend(taken.tolist())
    order = sorted(sampled_positions)
    stratum = np.where(full.to_numpy()[order], "full", "sample")
    return items.iloc[order].assign(stratum=stratum, weight=weight[order])


def _kappa(x: np.ndarray, y: np.ndarray, confusion: np.ndarray, draws: int, seed: int) -> Estimate:
    same = bool((x == y).all())
    if not same and len(np.unique(x)) == 1 and len(np.unique(y)) == 1:
        return Estimate(np.nan, n=len(x), reason="each labeller used one class only")
    kappa = 1.0 if same else float(cohen_kappa_score(x, y))
    return percentile_interval(kappa, _resampled_kappas(confusion, draws, seed), len(x), "item")


def _resampled_kappas(confusion: np.ndarray, draws: int, seed: int) -> Float[np.ndarray, " draws"]:
    """Resampling items is a multinomial draw of the confusion table."""
    n = int(confusion.sum())
    resampled = stats.multinomial(n, confusion.ravel() / n, seed=seed).rvs(draws).reshape(draws, *confusion.shape) / n
    observed = np.trace(resampled, axis1=1, axis2=2)
    expected = (resampled.sum(axis=1) * resampled.sum(axis=2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(observed == 1, 1.0, (observed - expected) / (1 - expected))
