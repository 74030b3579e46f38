"""Results as rich tables. A column is a header and a function from a row to its text; undefined numbers are shown as
–."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from typing import Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from probes.intervals import Interval

Column = Callable[[Any], str]
Columns = Mapping[str, Column]
UNDEFINED = "–"


def text(name: str) -> Column:
    """A column as it is."""
    return lambda row: UNDEFINED if pd.isna(row[name]) else str(row[name])


def number(name: str, form: str) -> Column:
    """A number in a format such as `+.3f`."""
    return lambda row: _format(row[name], form)


def interval(name: str, form: str) -> Column:
    """An estimate with its bounds, from `name`, `name_low` and `name_high`; without them where exact."""

    def show(row: Any) -> str:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        bounds = "" if pd.isna(low) or low == high else f" [{_format(low, form)}, {_format(high, form)}]"
        return _format(row[name], form) + bounds

    return show


def interval_columns(name: str, value: Interval) -> dict[str, float]:
    """The three columns of an interval."""
    return {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}


def render(title: str, table: pd.DataFrame, columns: Columns) -> Group:
    """A result's table for the terminal, with the reasons for undefined numbers below it.

    Args:
        title: printed above.
        table: the rows to show, in this order.
        columns: header → what to show; the first two are aligned left.
    """
    rendered = Table(title=title, title_justify="left")
    for position, header in enumerate(columns):
        rendered.add_column(header, justify="right" if position else "left", no_wrap=not position, overflow="fold")
    for _, row in table.iterrows():
        rendered.add_row(*(Text(show(row)) for show in columns.values()))
    reasons = table.loc[table["reason"] != "", ["cell", "reason"]].drop_duplicates() if "reason" in table else []
    notes = [Text(f"{UNDEFINED} {row.cell}: {row.reason}") for row in getattr(reasons, "itertuples", list)()]
    return Group(rendered, *notes)


def _format(value: Any, form: str) -> str:
    return UNDEFINED if pd.isna(value) or isnan(value) else format(int(value) if form == "d" else value, form)
