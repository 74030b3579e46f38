"""The matrix as a table that can be sorted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.harness.engine_marks import COLUMN as ACROSS_ENGINES
from probes.harness.names import BASELINE
from probes.labels.moved import COLUMN as DISAGREE
from probes.report.formatting import ACTIONS, REGIMES, number, percent, points
from probes.report.run import Run

Show = Callable[[Any], str]


MAIN, COUNTING, WORDING, PROBES = "", "How refusals were counted", "Wording of refusals", "Probes"
"""Blocks of columns: the first is always shown, each of the others is a table that opens."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: of the matrix.
        head: what is above it.
        unit: below the head.
        help: what it means, in a sentence.
        show: a value as text.
        group: which table it is in.
        interval: whether `key_low` and `key_high` are shown below.
        order: a text's place when sorted; numbers are sorted as they are.
    """

    key: str
    head: str
    unit: str
    help: str
    show: Show
    group: str = MAIN
    interval: bool = False
    order: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether it is aligned left."""
        return self.show in (str, _regime, _action)


@dataclass(frozen=True)
class ReportValue:
    """One field: its text, what it is sorted by, and a smaller second line."""

    text: str
    key: str
    below: str = ""


def _regime(value: Any) -> str:
    return REGIMES.get(str(value), str(value))


def _action(value: Any) -> str:
    return ACTIONS.get(str(value), str(value))


def _form(form: str) -> Show:
    return lambda value: number(value, form)


COLUMNS = (
    Column("bits_per_weight", "Bits", "per weight", "bits per weight of the quantized linears, scales included",
           _form(".2f")),
    Column("outcome", "Counted by", "", "who decided what is a refusal: a judge, or a lexicon without one", str,
           COUNTING),
    Column("refusal_rate", "Refuses", "% of harmful", "share of harmful prompts refused, Wilson's 95 % interval",
           percent, interval=True),
    Column("n_unscored", "Unscored", "harmful", "answers to harmful prompts without a label, left out of the rate",
           _form("d"), COUNTING),
    Column("refusal_rate_delta", "Δ refusals", "points", "cell − baseline, in percentage points", points),
    Column("over_refusal_rate", "Over-refuses", "% of harmless", "share of harmless prompts refused", percent,
           interval=True),
    Column("quality_delta", "Δ quality", "points", "cell − baseline of the quality metric, times 100", points),
    Column("regime", "Regime", "", "what refusals and quality did together", _regime, order=tuple(REGIMES)[1:4]),
    Column("p_regime", "P(regime)", "", "share of bootstrap resamples of the prompts with this regime", _form(".2f"),
           COUNTING),
    Column(ACROSS_ENGINES, "Engines", "cell; baseline", "answered by different engines: the change is theirs too", str,
           COUNTING),
    Column("action", "Action", "", "what the study's rules say", _action, order=("reject", "reject_severe_drift")),
    Column("refusal_rate_study_lexicon", "Openings", "% of harmful",
           "share of answers to harmful prompts with one of the study's 13 openings", percent, WORDING,
           interval=True),
    Column("refusal_rate_study_lexicon_delta", "Δ openings", "points",
           "cell − baseline of that share; where it tells another story than Δ refusals, the first screen says so",
           points, WORDING),
    Column("rtsi_score", "RTSI", "0 to 1", "how far the wording of refusals moved; a screen, not a verdict",
           _form(".2f"), WORDING),
    Column("rtsi_band", "Band", "", "LOW, MODERATE, HIGH or UNKNOWN; LOW never means safe", str, WORDING,
           order=("HIGH", "MODERATE", "LOW")),
    Column("entropy_shift", "Δ entropy", "nats", "of the first token, over harmful prompts", _form("+.3f"), PROBES),
    Column("confidence_shift", "Δ top-1", "probability", "of the first token, over harmful prompts", _form("+.3f"),
           PROBES),
    Column("cosine", "Cosine", "study's layer", "of the refusal direction to the baseline's", _form(".4f"), PROBES),
    Column("safety_ratio", "Safety ÷ rest", "raw error", "activation error of safety units over the others'",
           _form(".2f"), PROBES),
    Column("safety_ratio_normalized", "Safety ÷ rest", "normalized", "the same, errors divided by each unit's spread",
           _form(".2f"), PROBES),
    Column("safety_p", "p", "matched null", "of the normalized ratio among random sets of the same magnitude",
           _form(".3f"), PROBES),
    Column("margin_shift", "Δ margin", "logits", "refusal margin, cell − baseline, over harmful prompts", _form("+.3f"),
           PROBES),
)  # fmt: skip


def build(run: Run) -> dict[str, Any]:
    """The columns that the run has, a table per group of them, and the rows in the run's order."""
    columns = [c for c in COLUMNS if c.key in run.matrix and run.matrix[c.key].replace("", np.nan).notna().any()]
    return {
        "columns": columns,
        "tables": [
            {
                "group": group,
                "columns": group_columns,
                "rows": [_row(row, group_columns) for _, row in run.matrix.iterrows()],
            }
            for group in (MAIN, COUNTING, WORDING, PROBES)
            if (group_columns := [column for column in columns if column.group == group])
        ],
        "quality": _metric(run.matrix),
        "notes": _said(run.matrix, "note"),
        "undefined": list(_undefined(run.matrix)),
        "disagreements": _said(run.matrix, DISAGREE),
    }


def _row(row: pd.Series, columns: list[Column]) -> dict[str, Any]:
    return {
        "model": str(row["model"]),
        "cell": str(row["cell"]),
        "baseline": row["cell"] == BASELINE,
        "danger": "danger" in str(row["regime"]),
        "values": [_value(row, column) for column in columns],
    }


def _value(row: pd.Series, column: Column) -> ReportValue:
    value = row[column.key]
    if pd.isna(value):
        return ReportValue("–", "")
    below = ""
    ends = [row.get(f"{column.key}_{end}", np.nan) for end in ("low", "high")]
    if column.interval and not any(map(pd.isna, ends)):
        below = "–".join(map(column.show, ends))
    return ReportValue(column.show(value), _sort_key(value, column), below)


def _sort_key(value: Any, column: Column) -> str:
    if not column.is_text:
        return repr(float(value))
    place = column.order.index(str(value)) if str(value) in column.order else len(column.order)
    return f"{place:02d} {value}" if column.order else str(value)


def _metric(matrix: pd.DataFrame) -> str:
    names = matrix["quality_metric"].dropna().unique() if "quality_metric" in matrix else np.array([])
    return ", ".join(map(str, names))


def _said(matrix: pd.DataFrame, column: str) -> list[tuple[str, str]]:
    """(cell, what a column says of it in words): what its writer did to it, or what moved."""
    if column not in matrix:
        return []
    told = matrix[matrix[column].fillna("") != ""]
    return [(f"{row['model']} {row['cell']}", str(row[column])) for _, row in told.iterrows()]


def _undefined(matrix: pd.DataFrame) -> Iterable[tuple[str, str]]:
    for column in ("reason", "rtsi_reason"):
        if column in matrix:
            for _, row in matrix[matrix[column].fillna("") != ""].iterrows():
                yield f"{row['model']} {row['cell']}", str(row[column])
