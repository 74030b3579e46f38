"""Results as rich tables. A column is a header and a function from a row to its text; undefined numbers are shown as
–."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from probes.harness.fitted_table import FittedTable

TableColumn = Callable[[Any], str]
Columns = Mapping[str, TableColumn]
UNDEFINED = "–"


def text(name: str) -> TableColumn:
    """A column as it is."""
    return lambda row: UNDEFINED if is_undefined(row[name]) else str(row[name])


def number(name: str, form: str) -> TableColumn:
    """A number in a format such as `+.3f`."""
    return lambda row: _format(row[name], form)


def interval(name: str, form: str) -> TableColumn:
    """An estimate with its bounds, from `name`, `name_low` and `name_high`; without them where exact."""

    def show(row: Any) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        bounds = "" if is_undefined(low) or low == high else f" [{_format(low, form)}, {_format(high, form)}]"
        return _format(row[name], form) + bounds

    return show


def percent(name: str, form: str) -> TableColumn:
    """A fraction in per cent."""
    return lambda row: _format(100 * row[name], form)


def percent_interval(name: str) -> TableColumn:
    """A rate with its bounds in per cent, from `name`, `name_low` and `name_high`."""

    def show(row: Any) -> str:
        rate, low, high = (100 * row[column] for column in (name, f"{name}_low", f"{name}_high"))
        return UNDEFINED if is_undefined(rate) else f"{rate:.0f} [{low:.0f}, {high:.0f}]"

    return show


class Phrase:
    """A column of short phrases whose long forms stand below the table, once each, with the rows that they are about.

    Args:
        name: of the column; its text up to the first colon is the phrase.
        long: the column with the long form, where it is another.
        of: the columns that name a row.
    """

    def __init__(self, name: str, long: str | None = None, of: Sequence[str] = ("cell",)) -> None:
        self.name, self.long, self.of = name, long, of

    def __call__(self, row: Any) -> str:
        """The phrase of a row."""
        return text(self.name)(row).partition(": ")[0]

    def notes(self, table: pd.DataFrame) -> list[str]:
        """The long forms."""
        rows: dict[str, list[str]] = {}
        for _, row in table.iterrows():
            told = text(self.name)(row) if self.long is None else f"{self(row)}: {text(self.long)(row)}"
            phrase, colon, rest = told.partition(": ")
            if colon and rest not in (UNDEFINED, "", phrase):
                rows.setdefault(told, []).append(" ".join(str(row[name]) for name in self.of))
        return [f"{told} ({', '.join(of)})" for told, of in rows.items()]


def render(title: str, table: pd.DataFrame, columns: Columns) -> FittedTable:
    """A result's table for the terminal, with the reasons for undefined numbers below it.

    Args:
        title: printed above.
        table: the rows to show, in this order; `reason`, where there is one, explains what is undefined in `cell`.
        columns: header → what to show, what matters most first: where there is no room for all, those to the right are
            left out.
    """
    from probes.harness.fitted_table import Column, FittedTable

    rows = [row for _, row in table.iterrows()]
    fitted = [Column(header, [show(row) for row in rows]) for header, show in columns.items()]
    undefined = table[table["reason"] != ""].drop_duplicates(["cell", "reason"]) if "reason" in table else table[:0]
    reasons = [f"{UNDEFINED} {row['cell']}: {row['reason']}" for _, row in undefined.iterrows()]
    phrases = [note for show in columns.values() if isinstance(show, Phrase) for note in show.notes(table)]
    return FittedTable(title, fitted, [*phrases, *reasons])


def is_undefined(value: Any) -> bool:
    """Whether a number is NaN or missing."""
    import pandas as pd

    return bool(pd.isna(value))


def _format(value: Any, form: str) -> str:
    return UNDEFINED if is_undefined(value) or isnan(value) else format(int(value) if form == "d" else value, form)
