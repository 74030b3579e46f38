"""One row per cell of a model, as in the matrix of a study: refusals, their wording, and what the probes measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.harness.engine_marks import across_engines, marked
from probes.harness.names import BASELINE
from probes.harness.results import Result
from probes.labels.refused import STUDY_COLUMN, by_cell, counted_by
from probes.matrix.regimes import STUDY
from probes.matrix.rows import (
    add_regimes,
    judge_rates,
    over_refusal_table,
    quality_table,
    refusal_rates,
    summarize,
)
from probes.rtsi.features import WORDING_FEATURES, RefusalFeatures, refusal_features
from probes.rtsi.index import RTSI

PROBES_OF_THE_MATRIX = ("entropy", "direction", "calibration", "neurons", "margin")
"""Probes of which a matrix has columns."""


def cell_rows(
    model: str, described: pd.DataFrame, joined: Mapping[str, Result], index: RTSI, failed: Mapping[str, str]
) -> pd.DataFrame:
    """The rows of a matrix before regimes: one per cell of a model, failed ones last.

    Args:
        model: its name.
        described: see `probes.study.summary.describe_cells`, of the cells that were measured.
        joined: name → result over all cells; "completions" and "refusal" at least.
        index: of the RTSI score.
        failed: cell → why it could not be measured.
    """
    answers = joined["completions"].table
    behaviour = [refusal_table(answers, index)]
    if (answers["prompts"] == "harmless").any():
        behaviour.append(over_refusal_table(answers))
    if "quality" in joined:
        behaviour.append(quality_table(joined["quality"].table))
    if "judges" in joined:
        behaviour.append(judge_rates(joined["judges"].table))
    measured = list(behaviour[0]["cell"])
    probes = {name: joined[name].table for name in PROBES_OF_THE_MATRIX if name in joined}
    rows = summarize(described, behaviour, **probes)
    unscored = np.where(rows["n_total"] == 0, "no answer to a harmful prompt is scored", "")
    rows["reason"] = [failed.get(cell, reason) for cell, reason in zip(rows["cell"], unscored, strict=True)]
    lost = [{"cell": cell, "reason": error} for cell, error in failed.items() if cell not in measured]
    rows = pd.concat([rows, pd.DataFrame(lost)], ignore_index=True) if lost else rows
    rows = marked(rows, across_engines(joined["refusal"].table, BASELINE))
    rows.insert(0, "model", model)
    return rows


def model_matrix(
    model: str,
    described: pd.DataFrame,
    joined: Mapping[str, Result],
    settings: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> Result:
    """The matrix of one model by itself, by the study's rule and its published calibration of the RTSI.

    Args:
        model: its name.
        described: see `cell_rows`.
        joined: see `cell_rows`.
        settings: what the answers were made with.
        warnings: what the reader of the numbers must know.
    """
    index = RTSI.load()
    rows = cell_rows(model, described, joined, index, {})
    matrix = add_regimes(rows, {model: by_cell(joined["completions"].table)})
    about = {model: {**settings, "rtsi_calibration": index.source_}, "outcome": counted_by(matrix), **STUDY.describe()}
    return Result("matrix", matrix, about, list(warnings))


def refusal_table(completions: pd.DataFrame, index: RTSI | None = None) -> pd.DataFrame:
    """Refusals of harmful prompts and the stability of their wording, a row per cell.

    Args:
        completions: see `probes.matrix.rows.refusal_rates`.
        index: calibration of the RTSI score; default the one fitted on the study's published rows.

    Returns:
        The columns of `probes.matrix.rows.refusal_rates` and of `wording`; the deltas of the features
        (cell − baseline), and rtsi_score, rtsi_band, rtsi_reason.
    """
    table = refusal_rates(completions).merge(wording(completions), on="cell", validate="one_to_one")
    baseline = table[table["cell"] == BASELINE].iloc[0]
    for feature in WORDING_FEATURES:
        table[f"{feature}_delta"] = table[feature] - baseline[feature]
    return table.join(
        _bands(index or RTSI.load(), table, int(baseline["n_refusals_study_lexicon"])).add_prefix("rtsi_")
    )


def _bands(index: RTSI, table: pd.DataFrame, n_baseline: int) -> pd.DataFrame:
    """Score, band and reason of each row; of answers that are counted in another unit there is no score."""
    unit = table["token_unit"].iloc[0]
    if unit != index.token_unit_:
        reason = f"the responses are counted in {unit}, the calibration in {index.token_unit_}"
        return pd.DataFrame({"score": np.nan, "band": "UNKNOWN", "reason": reason}, index=table.index)
    counts = table["n_refusals_study_lexicon"]
    return index.bands(table, counts, np.full(len(table), n_baseline))


def wording(completions: pd.DataFrame) -> pd.DataFrame:
    """cell, the four features of the wording, which are of the study's openings by definition, and token_unit.

    Where a response has no token count, words are counted in all cells.
    """
    harmful = completions[completions["prompts"] == "harmful"]
    cells, there = list(map(str, harmful["cell"].unique())), harmful[harmful[STUDY_COLUMN].notna()]
    counted = bool(there["n_tokens"].notna().all())
    features = [_features(there[there["cell"] == cell], counted) for cell in cells]
    return pd.DataFrame(
        {"cell": cell, **{name: known[name] for name in WORDING_FEATURES}, "token_unit": known.token_unit}
        for cell, known in zip(cells, features, strict=True)
    )


def _features(answers: pd.DataFrame, counted: bool) -> RefusalFeatures:
    return refusal_features(list(answers["text"]), list(answers["n_tokens"]) if counted else None)
