"""Read a table from disk: .csv, .parquet, .json, .jsonl, or a result that a probe wrote.

What names something (a model, a cell, a prompt) stays text as it stands in the file: 007 is not 7, and None can be a
name. Sizes are checked before anything is unpacked.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.documents import json_lines, parse_json, read_text
from interp.errors import InputError
from probes.harness.parquet_files import check_size, read_parquet

NAMES = frozenset(
    ("model", "quantization", "cell", "baseline", "task", "sample_id", "prompt_sha256", "category", "prompts", "engine")
)
"""Columns that name something: text, whatever they look like."""
ANSWERS = frozenset(("prompt", "response", "completion", "text"))
"""Columns of text in which nothing is something, too: an empty answer is an answer, and not a missing one."""
_MISSING = frozenset(("", "nan", "na", "n/a", "null", "none", "<na>"))
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE | re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,15}", re.ASCII)


def read_table(path: Path) -> pd.DataFrame:
    """A table from a .csv, .parquet, .jsonl or .json file; a .json is records or a probe's result.

    Raises:
        InputError: missing, damaged, empty, or of another kind.
    """
    table = read_frame(path, (".csv", ".parquet", ".json", ".jsonl"))
    if table.empty:
        raise InputError(f"{path} has no rows", "a table with a row per cell")
    return table


def read_frame(path: Path, kinds: Sequence[str]) -> pd.DataFrame:
    """A table of one of these kinds (endings such as ".csv"), which may be empty.

    Raises:
        InputError: missing, damaged, too large, or of another kind.
    """
    if path.suffix.lower() not in kinds:
        raise InputError(f"{path} is not a kind of table that can be read", f"a file ending in {', '.join(kinds)}")
    table = _READERS[path.suffix.lower()](path)
    return table.assign(**{name: table[name].map(_as_name, na_action="ignore") for name in NAMES & set(table)})


def _as_name(value: Any) -> str:
    """JSON and parquet may hold a name as a number; of a column with gaps pandas makes 7 a 7.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_csv(path: Path) -> pd.DataFrame:
    """The table of a CSV file with a header; lines before it may begin with #.

    A column is numbers, or true and false, where every value in it is; `NAMES` and `ANSWERS` always are text.

    Raises:
        InputError: missing, not CSV, or a row that is longer or shorter than the header.
    """
    lines = read_text(path, "a CSV file").split("\n")
    comments = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    reader = csv.reader(io.StringIO("\n".join(lines[comments:]), newline=""), strict=True)
    try:
        rows = [(reader.line_num + comments, row) for row in reader if row]
    except csv.Error as error:
        where = f"{path}, after line {reader.line_num + comments},"
        raise InputError(f"{where} is not valid CSV ({error})", do="Correct that line") from error
    if not rows:
        raise InputError(f"{path} is empty", "a line of column names, and the rows below it")
    (_, names), *records = rows
    names = [name.strip() for name in names]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise InputError(f"{path} has two columns {twice[0]!r}", "a name for each column")
    for number, row in records:
        if len(row) != len(names):
            raise InputError(
                f"{path}, line {number}, has {len(row)} fields", f"{len(names)}, as the header has", "Correct that line"
            )
    check_size(path, len(records), len(names), 0)
    return pd.DataFrame(
        {name: _column(name, [row[place] for _, row in records]) for place, name in enumerate(names)},
        index=range(len(records)),
    )


def _column(name: str, values: list[str]) -> pd.Series:
    if name in ANSWERS:
        return pd.Series(values, dtype=object)
    if name not in NAMES:
        bare = [value.strip().lower() for value in values]
        known = [value for value in bare if value not in _MISSING]
        if all(map(_NUMBER.fullmatch, known)):
            if len(known) == len(bare) and all(map(_WHOLE.fullmatch, known)):
                return pd.Series([int(value) for value in bare], dtype=np.int64)
            return pd.Series([float("nan" if value in _MISSING else value) for value in bare], dtype=float)
        if set(known) <= {"true", "false"}:
            truth = [None if value in _MISSING else value == "true" for value in bare]
            return pd.Series(truth, dtype=bool if len(known) == len(bare) else object)
    return pd.Series([value or None for value in values], dtype=object)


def _json(path: Path) -> pd.DataFrame:
    document = parse_json(read_text(path, "a JSON table"), str(path))
    if isinstance(document, dict) and "schema_version" in document:
        from probes.harness.results import read_result

        if "rows" not in document:
            return read_result(path).table
        document = document["rows"]  # a result as `--json` prints it
    if not isinstance(document, list):
        raise InputError(f"{path} holds a JSON {type(document).__name__}", "a list of objects, one for each row")
    return _of_records(path, ((f"{path}, record {number},", row) for number, row in enumerate(document, start=1)))


def _jsonl(path: Path) -> pd.DataFrame:
    return _of_records(path, json_lines(read_text(path, "JSON lines"), str(path)))


def _of_records(path: Path, records: Iterable[tuple[str, Any]]) -> pd.DataFrame:
    """Rows of plain values; a key that a row lacks is a missing value."""
    rows: list[Mapping[str, Any]] = []
    names: dict[str, None] = {}
    for where, row in records:
        if not isinstance(row, dict):
            raise InputError(f"{where} holds {type(row).__name__} data", "an object with a value for each column")
        for name, value in row.items():
            if isinstance(value, (dict, list)):
                raise InputError(f"{where} holds {type(value).__name__} data under {name!r}", "a number or a text")
        rows.append(row)
        names |= dict.fromkeys(row)
    check_size(path, len(rows), len(names), 0)
    return pd.DataFrame({name: _of_one_kind(path, name, rows) for name in names}, index=range(len(rows)))


def _of_one_kind(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """A column, undefined where it is missing: all text, all numbers, or all true and false."""
    values = [row.get(name) for row in rows]
    kinds = {_kind(value): value for value in values if value is not None}
    if len(kinds) > 1 and name not in NAMES:
        examples = " and ".join(f"{kind} ({str(value)[:40]})" for kind, value in kinds.items())
        raise InputError(f"{path}: the column {name} holds {examples}", "one of them in all rows")
    return values if kinds else [float("nan")] * len(values)


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else "true or false" if isinstance(value, bool) else "numbers"


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".json": _json,
    ".jsonl": _jsonl,
}
