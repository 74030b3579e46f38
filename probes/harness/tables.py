"""Results as rich tables. A column is a header and a function from a row to its text; undefined numbers are shown as
–."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group, JustifyMethod

TableColumn = Callable[[Any], str]
Columns = Mapping[str, TableColumn]
UNDEFINED = "–"
LONGEST_UNBROKEN = 14
"""Characters; numbers, names and intervals up to this length are kept on one line."""


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


def render(title: str, table: pd.DataFrame, columns: Columns) -> Group:
    """A result's table for the terminal, with the reasons for undefined numbers below it.

    Args:
        title: printed above.
        table: the rows to show, in this order; `reason`, where there is one, explains what is undefined in `cell`.
        columns: header → what to show; the first two are aligned left.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    texts: list[list[Text]] = []
    rendered = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for position, (header, show) in enumerate(columns.items()):
        cells = [show(row) for _, row in table.iterrows()]
        width = min(max(map(len, cells), default=0), LONGEST_UNBROKEN)  # headers wrap before numbers and names do
        justify: JustifyMethod = "right" if position else "left"
        rendered.add_column(header, justify=justify, overflow="fold", min_width=width)
        texts.append([Text(cell) for cell in cells])
    for row in zip(*texts, strict=True):
        rendered.add_row(*row)
    undefined = table[table["reason"] != ""].drop_duplicates(["cell", "reason"]) if "reason" in table else table[:0]
    notes = [Text(f"{UNDEFINED} {row['cell']}: {row['reason']}") for _, row in undefined.iterrows()]
    return Group(rendered, *notes)


def is_undefined(value: Any) -> bool:
    """Whether a number is NaN or missing."""
    import pandas as pd

    return bool(pd.isna(value))


def _format(value: Any, form: str) -> str:
    return UNDEFINED if is_undefined(value) or isnan(value) else format(int(value) if form == "d" else value, form)
