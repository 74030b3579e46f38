"""Read a table from disk: .csv, .parquet, .json, or a result that a probe wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from interp.errors import InputError
from probes.results import read_result


def read_table(path: Path) -> pd.DataFrame:
    """A table from a .csv, .parquet, .jsonl or .json file; a .json is records or a probe's result.

    Raises:
        InputError: missing, damaged, empty, or of another kind.
    """
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": _csv,
        ".parquet": pd.read_parquet,
        ".json": _json,
        ".jsonl": _jsonl,
    }
    if path.suffix not in readers:
        raise InputError(f"{path} has no known ending", f"one of {', '.join(readers)}")
    try:
        table = readers[path.suffix](path)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    if table.empty:
        raise InputError(f"{path} has no rows", "a table with a row per cell")
    return table


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, comment="#")


def _json(path: Path) -> pd.DataFrame:
    document = json.loads(path.read_text())
    if isinstance(document, dict) and "schema_version" in document:
        return read_result(path).table
    return pd.DataFrame.from_records(document)


def _jsonl(path: Path) -> pd.DataFrame:
    return pd.read_json(path, lines=True)
