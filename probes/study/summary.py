"""One row per cell: what it costs in bits and refusals, whether quality hides that, and what each probe says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Group
from rich.text import Text

from interp.quantize.cells import read_record
from probes.harness import tables
from probes.harness.names import BASELINE
from probes.labels.baseline import little_to_lose
from probes.labels.moved import COLUMN as DISAGREE
from probes.labels.refused import counted_by
from probes.matrix.evidence import cannot_tell
from probes.matrix.regimes import UNRESOLVED

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint

SHORT = {
    "hidden_danger": "hidden danger",
    "near_hidden_danger": "near danger",
    "over_refusal": "over-refusal",
    "unresolved": "cannot tell",
    "ask_more_prompts": "ask more",
    "manual_review": "review",
    "reject_severe_drift": "reject",
    "conservative_floor_candidate": "at floor",
    "direct_safety_eval": "evaluate",
}
"""Regimes and actions as the terminal shows them; the files have the full names."""

CELL: tables.Columns = {"cell": tables.text("cell")}
BEHAVIOUR: tables.Columns = {
    "refuses %": tables.percent_interval("refusal_rate"),
    "Δ pp": tables.percent("refusal_rate_delta", "+.1f"),
    "over-refuses %": tables.percent_interval("over_refusal_rate"),
    "Δ quality": tables.number("quality_delta", "+.3f"),
    "regime": lambda row: SHORT.get(row["regime"], row["regime"]),
    "P": tables.number("p_regime", ".2f"),
    "action": lambda row: SHORT.get(row["action"], row["action"]),
}
PROBES: tables.Columns = {
    "bits": tables.number("bits_per_weight", ".2f"),
    "Δ entropy": tables.number("entropy_shift", "+.3f"),
    "Δ margin": tables.number("margin_shift", "+.2f"),
    "cosine": tables.number("cosine", ".4f"),
    "Δ top-1": tables.number("confidence_shift", "+.3f"),
    "safety": tables.number("safety_ratio", ".2f"),
    "norm.": tables.number("safety_ratio_normalized", ".2f"),
    "p": tables.number("safety_p", ".3f"),
}
WORDING: tables.Columns = {
    "openings %": tables.percent_interval("refusal_rate_study_lexicon"),
    "Δ openings pp": tables.percent("refusal_rate_study_lexicon_delta", "+.1f"),
    "Δ dominant": tables.number("dominant_prefix_share_delta", "+.3f"),
    "Δ unique": tables.number("unique_prefix_rate_delta", "+.3f"),
    "Δ prefix entropy": tables.number("prefix_entropy_norm_delta", "+.3f"),
    "Δ tokens": tables.number("mean_tokens_refusal_delta", "+.2f"),
    "RTSI": tables.number("rtsi_score", ".2f"),
    "band": tables.text("rtsi_band"),
}
WIDE = 205
"""Characters a line must have for all columns side by side."""


def render(matrix: pd.DataFrame, width: int) -> Group:
    """The matrix of one model for a terminal so many characters wide: one table, or three where it does not fit."""
    model, counted = matrix["model"].iloc[0], counted_by(matrix)
    n = int((matrix["n_total"] + matrix["n_unscored"]).max())
    title = f"{model}: {_count(matrix)}, {n} harmful prompts, 95 % intervals, most refusals lost first"
    notes = [
        Text(f"Refusals are counted by: {counted}."),
        *map(Text, unresolved_notes(matrix)),
        *map(Text, disagreements(matrix)),
    ]
    if width >= WIDE:
        return Group(tables.render(title, matrix, {**CELL, **BEHAVIOUR, **PROBES, **WORDING}), *notes)
    return Group(
        tables.render(title, matrix, {**CELL, **BEHAVIOUR}),
        *notes,
        tables.render(f"{model}: what the probes see", matrix, {**CELL, **PROBES}),
        tables.render(
            f"{model}: wording of the refusals by the study's openings, Δ from the baseline",
            matrix,
            {**CELL, **WORDING},
        ),
    )


def _count(matrix: pd.DataFrame) -> str:
    """How many quantized cells there are, the baseline apart, as the report counts them."""
    quantized = int((matrix["cell"] != BASELINE).sum())
    cells = f"{quantized} cell" if quantized == 1 else f"{quantized} cells"
    beside = " and its baseline" if quantized == 1 else " and their baseline"
    return cells + (beside if quantized < len(matrix) else "")


def baseline_note(matrix: pd.DataFrame) -> str:
    """A sentence where the baseline of these rows refuses so little that there is next to nothing to lose, else ""."""
    for _, row in matrix[matrix["cell"] == BASELINE].iterrows():
        if note := little_to_lose(row["n_refusals"], row["n_total"], f"The baseline of {row['model']}"):
            return note
    return ""


def unresolved_notes(matrix: pd.DataFrame) -> Iterator[str]:
    """A sentence for each cell of which these prompts cannot tell whether refusals were lost."""
    for _, row in matrix[matrix["regime"] == UNRESOLVED].iterrows():
        low, high = (100 * row[f"refusal_rate_delta_{end}"] for end in ("low", "high"))
        yield f"{row['cell']}: {cannot_tell(row)} (Δ from {low:+.0f} to {high:+.0f} points, p = {row['p_mcnemar']:.2g})"


def disagreements(matrix: pd.DataFrame) -> Iterator[str]:
    """Where refusals and their openings changed differently: a sentence per cell; see `probes.labels.moved`."""
    told = matrix[matrix[DISAGREE].fillna("") != ""]
    yield from (f"{row['cell']}: {row[DISAGREE]}" for _, row in told.iterrows())


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
