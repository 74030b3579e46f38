"""What the RTSI command reads: tables of features or deltas, and files of completions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from interp.documents import json_lines, read_text
from interp.errors import InputError
from probes.harness.names import BASELINE
from probes.labels.answers import Answers
from probes.matrix.cells import KEY, add_deltas, check_rates, is_baseline, join
from probes.matrix.inputs import table_or_answers
from probes.matrix.rows import refusal_rates
from probes.rtsi.features import WORDING_FEATURES, TokenUnit, refusal_features
from probes.rtsi.index import DELTAS, UNIT_COLUMN
from probes.rtsi.rows import wording

TEXT_FIELDS = ("completion", "response", "response_head", "text")
COUNT_FIELDS = ("n_tokens", "token_count")
RATES = ("outcome", "refusal_rate", "n_refusals_study_lexicon")
"""What is taken of the refusals of answers."""


def delta_table(files: Sequence[Path]) -> pd.DataFrame:
    """The rows of `read_rows`."""
    return read_rows(files)[0]


def read_rows(paths: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Rows of feature deltas from one or more tables with the same cells, and warnings.

    A table either has the delta columns, or the features of all cells with `model` and `quantization`, whose baselines
    are then resolved and left out. The answers of a baseline and its cells, as `probes.refusal` wrote them (its folder,
    or its table), get a row of features per cell.

    Raises:
        InputError: missing columns, or cells, or baselines.
    """
    warnings: list[str] = []
    tables = {str(path): _by_openings(_cells(path, warnings)) for path in paths}
    cells = next(iter(tables.values())) if len(tables) == 1 else join(tables)
    if set(DELTAS) <= set(cells.columns):
        defined = cells[list(DELTAS)].notna().any(axis=1) | ~_baseline_rows(cells)
        return cells[defined].reset_index(drop=True), warnings
    missing = [column for column in (*KEY, *WORDING_FEATURES, "refusal_rate") if column not in cells]
    if missing:
        raise InputError(
            f"{', '.join(tables)} has no column {', '.join(missing)}",
            f"deltas ({', '.join(DELTAS)}), or the features of all cells with model and quantization",
        )
    matrix = join({", ".join(tables): cells})
    check_rates(matrix, ["refusal_rate"])
    return deltas_of_features(matrix), warnings


def _cells(path: Path, warnings: list[str]) -> pd.DataFrame:
    """The table of a file, or of a folder; answers become a row of features per cell, with their warnings."""
    answers = table_or_answers(path)
    if not isinstance(answers, Answers):
        return answers
    warnings += answers.warnings
    rows = refusal_rates(answers.completions)[["cell", *RATES]].merge(wording(answers.completions), on="cell")
    return rows.rename(columns={"cell": "quantization"}).assign(model=answers.model, baseline=BASELINE)


def _by_openings(cells: pd.DataFrame) -> pd.DataFrame:
    """The matrix of a study counts refusals by another outcome; the index is of the study's openings by definition."""
    count = "n_refusals_study_lexicon"
    return cells.assign(n_refusals=cells[count]) if count in cells else cells


def deltas_of_features(cells: pd.DataFrame) -> pd.DataFrame:
    """Deltas of a matrix of features, baselines left out; refusal rates and counts stay pairs.

    Raises:
        InputError: token counts of several units within the table.
    """
    if UNIT_COLUMN in cells and cells[UNIT_COLUMN].nunique() > 1:
        raise InputError("The cells count their tokens in several units", "one unit in all rows")
    counts = ["n_refusals"] if "n_refusals" in cells else []
    deltas = add_deltas(cells, [*WORDING_FEATURES, "refusal_rate", *counts])
    deltas["refusal_rate_baseline"] = deltas["refusal_rate"] - deltas["refusal_rate_delta"]
    if counts:
        deltas["n_refusals_baseline"] = deltas["n_refusals"] - deltas.pop("n_refusals_delta")
    return deltas[~is_baseline(deltas)].reset_index(drop=True)


def features_of_completions(files: Mapping[str, Path], model: str = "model") -> pd.DataFrame:
    """Features of each file of completions: a row a cell with `model`, `quantization` and `token_unit`."""
    rows = []
    for name, file in files.items():
        completions, token_counts = read_completions(file)
        features = refusal_features(completions, token_counts)
        unit: dict[str, TokenUnit] = {UNIT_COLUMN: features.token_unit}
        rows.append({"model": model, "quantization": name, **features, **unit})
    return pd.DataFrame(rows)


def read_completions(file: Path) -> tuple[list[str], list[float] | None]:
    """Completions and, where every line has them, their token counts.

    Args:
        file: .jsonl, an object a line: a text field (`completion`, `response`, `response_head` or `text`) and
            optionally `n_tokens`.

    Raises:
        InputError: missing, empty, a line that is no such object, or token counts on some lines only.
    """
    text = read_text(file, "a .jsonl file of completions")
    records = [_completion(record, where) for where, record in json_lines(text, str(file))]
    if not records:
        raise InputError(f"{file} holds no completions", "an object a line")
    counts = [count for _, count in records if count is not None]
    if counts and len(counts) < len(records):
        raise InputError(f"{file} has token counts on {len(counts)} of {len(records)} lines", "on all or none")
    return [text for text, _ in records], counts or None


def _completion(record: Any, where: str) -> tuple[str, float | None]:
    """The text of a record, and its token count where it has one."""
    field = next((name for name in TEXT_FIELDS if isinstance(record, dict) and name in record), None)
    if field is None:
        raise InputError(f"{where} is not a completion", f"an object with {' or '.join(TEXT_FIELDS)}")
    if not isinstance(record[field], str):
        raise InputError(f"{where}: the field {field} is {json.dumps(record[field])}", "text")
    count = next((record[name] for name in COUNT_FIELDS if record.get(name) is not None), None)
    if count is not None and (isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 <= count < 1e9):
        raise InputError(f"{where}: the token count is {json.dumps(count)}", "a number, 0 or more")
    return record[field], None if count is None else float(count)


def _baseline_rows(cells: pd.DataFrame) -> pd.Series:
    if "baseline" not in cells or "quantization" not in cells:
        return pd.Series(False, index=cells.index)
    return is_baseline(cells)
