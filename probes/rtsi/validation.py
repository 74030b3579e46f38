"""Is RTSI right on rows that it was not fitted on? Folds by row, model, family or format; simpler screens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.base import clone
from sklearn.model_selection import BaseCrossValidator

from interp.errors import InputError
from probes.rtsi.index import RTSI
from probes.stats.intervals import TOLERANCE

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


def _one_class(verb: str, loss: np.ndarray) -> str:
    return "" if 0 < loss.sum() < len(loss) else f"{verb} on one class"
