"""One row per cell: what each probe says of it, beside what it costs in bits and in refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Group

from interp.cells import read_record
from interp.checkpoint import Checkpoint
from probes import tables
from probes.completions import Completion
from probes.intervals import rate_interval
from probes.pair import BASELINE
from probes.refusal_text import WORDING_FEATURES, refusal_features, refusals
from probes.rtsi import RTSI
from probes.tables import interval_columns

PROBE_COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "bits": tables.number("bits_per_weight", ".2f"),
    "refuses %": tables.percent_interval("refusal_rate"),
    "Δ pp": lambda row: f"{100 * row['refusal_rate_delta']:+.1f}",
    "Δ entropy": tables.number("entropy_shift", "+.3f"),
    "cosine": tables.number("cosine", ".4f"),
    "Δ top-1": tables.number("confidence_shift", "+.3f"),
    "safety": tables.number("safety_ratio", ".2f"),
    "norm.": tables.number("safety_ratio_normalized", ".2f"),
    "p": tables.number("safety_p", ".3f"),
}
WORDING_COLUMNS: tables.Columns = {
    "Δ dominant": tables.number("dominant_prefix_share_delta", "+.3f"),
    "Δ unique": tables.number("unique_prefix_rate_delta", "+.3f"),
    "Δ prefix entropy": tables.number("prefix_entropy_norm_delta", "+.3f"),
    "Δ tokens": tables.number("mean_tokens_refusal_delta", "+.2f"),
    "RTSI": tables.number("rtsi_score", ".2f"),
}
WIDE = 120
"""Characters a line must have for all columns side by side."""


def render(matrix: pd.DataFrame, width: int) -> Group:
    """The matrix for a terminal of so many characters a line: one table, or two where it does not fit."""
    model, n = matrix["model"].iloc[0], int(matrix["n_total"].iloc[0])
    title = f"{model}: {len(matrix)} cells, {n} harmful prompts, 95 % intervals"
    if width >= WIDE:
        return tables.render(title, matrix, {**PROBE_COLUMNS, **WORDING_COLUMNS})
    cell = {"cell": PROBE_COLUMNS["cell"]}
    wording = tables.render(
        f"{model}: wording of the refusals, Δ from the baseline", matrix, {**cell, **WORDING_COLUMNS}
    )
    return Group(tables.render(title, matrix, PROBE_COLUMNS), wording)


def describe_cells(checkpoints: Mapping[str, Checkpoint]) -> pd.DataFrame:
    """cell, format, bits_per_weight (linears of the blocks, scales included), note (what its writer did to it)."""
    return pd.DataFrame(
        {
            "cell": name,
            "format": checkpoint.format,
            "bits_per_weight": checkpoint.bits_per_weight(),
            "note": "; ".join(_notes(checkpoint.path)),
        }
        for name, checkpoint in checkpoints.items()
    )


def _notes(path: Path) -> Sequence[str]:
    record = read_record(path)
    return () if record is None else record.notes


def refusal_table(completions: Mapping[str, Sequence[Completion]], index: RTSI | None = None) -> pd.DataFrame:
    """Refusals of harmful prompts and the stability of their wording, a row per cell, the baseline's first.

    Args:
        completions: cell → what it answered, the baseline under `probes.pair.BASELINE`; the same prompts for all.
        index: calibration of the RTSI score; default the one fitted on the study's published rows.

    Returns:
        cell, n_total, n_refusals, refusal_rate with its Wilson interval (_low, _high), refusal_rate_delta, the four
        wording features and their deltas (cell − baseline), token_unit, rtsi_score, rtsi_band, rtsi_reason.
    """
    table = pd.DataFrame(_refusal_row(cell, answers) for cell, answers in completions.items())
    baseline = table.set_index("cell").loc[BASELINE]
    for feature in ("refusal_rate", *WORDING_FEATURES):
        table[f"{feature}_delta"] = table[feature] - baseline[feature]
    table["token_unit"] = "tokens"
    bands = (index or RTSI.load()).bands(table, table["n_refusals"], np.full(len(table), baseline["n_refusals"]))
    return table.join(bands.add_prefix("rtsi_"))


def _refusal_row(cell: str, answers: Sequence[Completion]) -> dict[str, object]:
    texts = [answer.text for answer in answers]
    features = refusal_features(texts, [answer.n_tokens for answer in answers])
    rate = rate_interval(torch.as_tensor(refusals(texts)))
    return {"cell": cell, **features, **interval_columns("refusal_rate", rate)}


def summarize(
    cells: pd.DataFrame,
    refusal: pd.DataFrame,
    entropy: pd.DataFrame,
    direction: pd.DataFrame,
    calibration: pd.DataFrame,
    neurons: pd.DataFrame,
) -> pd.DataFrame:
    """Join the probes' tables into one row per cell, in the order of `cells`.

    Entropy and confidence shifts are means over the harmful prompts; the cosine is the study layer's; the safety-neuron
    ratios are averages over layers at the residual stream, `safety_p` belongs to the normalized one.
    """
    harmful = entropy[entropy["prompts"] == "harmful"].rename(columns={"shift": "entropy_shift"})
    confidence = calibration[calibration["prompts"] == "harmful"]
    study_layer = direction[direction["study_layer"] == 1]
    ratios = neurons[(neurons["site"] == "resid") & neurons["layer"].isna()].rename(
        columns={
            "ratio": "safety_ratio",
            "normalized_ratio": "safety_ratio_normalized",
            "p_normalized": "safety_p",
            "verdict": "safety_verdict",
        }
    )
    matrix = cells.merge(refusal, on="cell", how="left")
    for table, columns in (
        (harmful, ["entropy_shift"]),
        (study_layer, ["cosine", "norm_ratio"]),
        (confidence, ["confidence_shift"]),
        (ratios, ["safety_ratio", "safety_ratio_normalized", "safety_p", "safety_verdict"]),
    ):
        matrix = matrix.merge(table[["cell", *columns]], on="cell", how="left", validate="one_to_one")
    return matrix.assign(reason="")
