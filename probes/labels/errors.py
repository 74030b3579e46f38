"""How often a lexicon is wrong: its labels against those that completions already carry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group

from interp.documents import json_lines, read_text
from interp.errors import InputError
from probes.harness import tables
from probes.labels.label import LEXICONS, REFUSED, Label
from probes.stats.intervals import interval_columns, rate_interval

REFERENCES = {"refused_substring": 1, "refused": 1, "complied_llamaguard2": 0, "complied": 0}
"""Columns that can be compared with → which of their values, 0 or 1, means a refusal."""
RESPONSES = ("response", "response_head", "completion")
"""What the text may be called; the first one present is taken."""
ALL = "all"
COUNTED: dict[str, tuple[str, frozenset[Label]]] = {
    "study": ("study", frozenset({Label.REFUSAL})),
    "broader": ("broader", REFUSED),
    "broader, full": ("broader", frozenset({Label.REFUSAL})),
}
"""Row of the table → the lexicon, and which of its classes are taken for refusals."""

ERROR_COLUMNS: tables.Columns = {
    "lexicon": tables.text("lexicon"),
    "against": tables.text("against"),
    "source": tables.text("source"),
    "n": tables.number("n", "d"),
    "missed": tables.number("missed", "d"),
    "false": tables.number("false", "d"),
    "sensitivity": tables.interval("sensitivity", ".3f"),
    "specificity": tables.interval("specificity", ".3f"),
    "both": tables.number("both_refuse", "d"),
    "neither": tables.number("neither", "d"),
}
CLASS_COLUMNS: tables.Columns = {
    "broader lexicon says": tables.text("label"),
    "against": tables.text("against"),
    "refuses": tables.number("refuses", "d"),
    "does not": tables.number("does_not", "d"),
}


def read_labelled(paths: Sequence[Path]) -> pd.DataFrame:
    """Completions with what each lexicon says of them.

    Args:
        paths: JSON lines with a text (`RESPONSES`) and at least one column of `REFERENCES`. What a file's name
            `source.condition.jsonl` begins with names the source.

    Returns:
        source, text, a column for each lexicon of `LEXICONS`, and the reference columns found: 1 refused, 0 not, NaN
        missing.

    Raises:
        InputError: a file cannot be read, or a line is not JSON, has no text or has a label that is neither 0 nor 1.
    """
    table = pd.DataFrame([record for path in paths for record in _records(path)])
    if not set(table) & set(REFERENCES):
        raise InputError(f"No labels in {', '.join(map(str, paths))}", f"a column {' or '.join(REFERENCES)}")
    for name, classify in LEXICONS.items():
        table[name] = [classify(text) for text in table["text"]]
    return table


def confusion(table: pd.DataFrame) -> pd.DataFrame:
    """Errors of each lexicon against each reference column, for all completions and for each source.

    The broader lexicon is taken twice: with and without its partial refusals. Sensitivity: share of the reference's
    refusals that the lexicon sees; specificity: share of the others that it leaves alone; both with Wilson intervals.
    """
    references = [name for name in REFERENCES if name in table]
    sources = [ALL, *sorted(table["source"].unique())]
    return pd.DataFrame(
        [
            _errors(table if source == ALL else table[table["source"] == source], lexicon, reference, source)
            for reference in references
            for source in sources
            for lexicon in COUNTED
        ]
    )


def classes(table: pd.DataFrame, layer: str = "broader") -> pd.DataFrame:
    """How often each class of a lexicon meets each value of the reference columns."""
    rows = []
    for reference in (name for name in REFERENCES if name in table):
        known = table[table[reference].notna()]
        for label in Label:
            refused = known.loc[known[layer] == label, reference]
            rows.append(
                {
                    "label": label,
                    "against": reference,
                    "refuses": int(refused.sum()),
                    "does_not": int((1 - refused).sum()),
                }
            )
    return pd.DataFrame(rows)


def show(errors: pd.DataFrame, by_class: pd.DataFrame) -> Group:
    """Both tables for the terminal."""
    return Group(
        tables.render(
            "Lexicons against labels (full: partial refusals are not counted)",
            errors.assign(cell="", reason=""),
            ERROR_COLUMNS,
        ),
        tables.render(
            "Classes of the broader lexicon against labels", by_class.assign(cell="", reason=""), CLASS_COLUMNS
        ),
    )


def _errors(table: pd.DataFrame, lexicon: str, reference: str, source: str) -> dict[str, object]:
    layer, counted = COUNTED[lexicon]
    known = table[table[reference].notna() & (table[layer] != Label.UNSCORED)]
    by_lexicon, refused = known[layer].isin(counted).to_numpy(), known[reference].to_numpy() == 1
    return {
        "lexicon": lexicon,
        "against": reference,
        "source": source,
        "n": len(known),
        "both_refuse": int((by_lexicon & refused).sum()),
        "missed": int((~by_lexicon & refused).sum()),
        "false": int((by_lexicon & ~refused).sum()),
        "neither": int((~by_lexicon & ~refused).sum()),
        **interval_columns("sensitivity", rate_interval(by_lexicon[refused])),
        **interval_columns("specificity", rate_interval(~by_lexicon[~refused])),
    }


def _records(path: Path) -> list[dict[str, object]]:
    source = path.stem.rpartition(".")[0] or path.stem
    text = read_text(path, "a UTF-8 file of JSON lines")
    return [{"source": source, **_record(fields, where)} for where, fields in json_lines(text, str(path))]


def _record(fields: Any, where: str) -> dict[str, object]:
    """The text of a line, and what its labels say."""
    text = next((fields[n] for n in RESPONSES if isinstance(fields, dict) and isinstance(fields.get(n), str)), None)
    if text is None:
        raise InputError(f"{where} has no text", f"a field {' or '.join(RESPONSES)}")
    labels = {name: fields[name] for name in REFERENCES if fields.get(name) is not None}
    wrong = next((name for name, value in labels.items() if value not in (0, 1)), None)
    if wrong is not None:
        raise InputError(f"{where}: {wrong} is {labels[wrong]!r}", "0 or 1")
    refused = {name: float(value == REFERENCES[name]) for name, value in labels.items()}
    return {"text": text, **refused}
