"""What a reader of a matrix must know of its rows, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.labels.baseline import little_to_lose
from probes.matrix.cells import is_baseline
from probes.matrix.evidence import cannot_tell
from probes.matrix.regimes import UNRESOLVED
from probes.matrix.settings import cell_name

NO_COUNTS = (
    "without the number of prompts of each rate (refusal_rate_n) nobody knows what they could have shown, so the "
    "regime is by the threshold alone"
)
NO_QUALITY = "Quality was not measured: a cell that lost refusals beyond the threshold is undetermined."


def baseline_notes(matrix: pd.DataFrame) -> list[str]:
    """A sentence for every model whose baseline refuses next to nothing; what without a number of prompts is unsaid."""
    if "refusal_rate_n" not in matrix:
        return []
    rows = matrix[is_baseline(matrix)]
    counts = (rows["refusal_rate"] * rows["refusal_rate_n"]).round()
    called = [f"The baseline of {model}" for model in rows["model"]] if len(rows) > 1 else ["The baseline"]
    return [note for note in map(little_to_lose, counts, rows["refusal_rate_n"], called) if note]


def remarks(matrix: pd.DataFrame) -> Iterator[str]:
    """Which rows' prompts cannot tell, of which nobody knows, and whether quality is missing."""
    for _, row in matrix[matrix["regime"] == UNRESOLVED].iterrows():
        low, high = (100 * row[f"refusal_rate_delta_{end}"] for end in ("low", "high"))
        yield f"{cell_name(row)}: {cannot_tell(row)} (Δ from {low:+.0f} to {high:+.0f} points)"
    unknown = matrix[~is_baseline(matrix) & matrix["refusal_rate_delta"].notna() & ~_powered(matrix)]
    if len(unknown):
        yield f"{', '.join(cell_name(row) for _, row in unknown.iterrows())}: {NO_COUNTS}"
    if matrix["quality_delta"].isna().all():
        yield NO_QUALITY


def _powered(matrix: pd.DataFrame) -> pd.Series:
    column = "refusal_rate_delta_low"
    return matrix[column].notna() if column in matrix else pd.Series(False, index=matrix.index)
