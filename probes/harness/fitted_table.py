"""A table that fits: whole words, and where there is no room for all columns, fewer of them and a note that says which.

Sizes are in characters of a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

UNBROKEN = 14
"""Numbers, names and intervals up to this length are kept on one line."""
LONGEST_WORD = 30
"""Longer words (names of files) may be broken, behind a hyphen, dot, slash or underscore where there is one."""
_WORD = re.compile(r"\[[^\]]*\]\S*|\S+")
"""The bounds of an interval are one word."""


@dataclass
class Column:
    """A header and its cells.

    Attributes:
        header: above it; may be wrapped.
        cells: one for each row.
    """

    header: str
    cells: Sequence[str]
    natural: int = field(init=False)
    least: int = field(init=False)

    def __post_init__(self) -> None:
        self.natural = max(map(cell_len, (self.header, *self.cells)))
        words = [word for cell in (self.header, *self.cells) for word in _WORD.findall(cell)]
        short = [cell for cell in self.cells if cell_len(cell) <= UNBROKEN]
        self.least = min(max(map(cell_len, (*words, *short)), default=0), max(LONGEST_WORD, cell_len(self.header)))

    @property
    def is_prose(self) -> bool:
        """Whether some cell is words, to be aligned left."""
        return any(len(cell) > UNBROKEN and cell[:1].isalpha() for cell in self.cells)


@dataclass
class FittedTable:
    """A rich renderable.

    Attributes:
        title: above the table; a line of its own.
        columns: from left to right, what matters most first: where there is no room, columns are left out from the
            right, and the first never.
        notes: below the table.
    """

    title: str
    columns: Sequence[Column]
    notes: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        columns, left_out = self.fitting(options.max_width)
        widths = _widths(columns, options.max_width)
        table = Table(box=box.SIMPLE_HEAD, padding=0)
        for position, (column, width) in enumerate(zip(columns, widths, strict=True)):
            justify = "right" if position and not column.is_prose else "left"
            table.add_column(wrapped(column.header, width), justify=justify, width=width, no_wrap=True)  # type: ignore[arg-type]
        for row in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*(Text(wrapped(cell, width)) for cell, width in zip(row, widths, strict=True)))
        yield Text(self.title, style="table.title")
        yield table
        if left_out:
            yield Text(f"No room here for: {', '.join(left_out)} (--wide shows all; the files have them)")
        yield from map(Text, self.notes)

    def fitting(self, width: int) -> tuple[list[Column], list[str]]:
        """The columns that have room, and the headers of the others in the table's order."""
        shown = list(self.columns)
        while len(shown) > 1 and _room(shown, width) < sum(column.least for column in shown):
            shown.pop()
        return shown, [column.header.strip() for column in self.columns[len(shown) :]]


def _room(columns: Sequence[Column], width: int) -> int:
    """Characters for the cells: one goes between columns, and one to each side."""
    return width - len(columns) - 1


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """Columns are as wide as their cells; where that is too much, the widest give way, none below its longest word."""
    widths = [column.natural for column in columns]
    while sum(widths) > _room(columns, width):
        slack = [have if have > column.least else 0 for have, column in zip(widths, columns, strict=True)]
        if not any(slack):
            widths[0] = max(1, widths[0] - (sum(widths) - _room(columns, width)))
            break
        widths[slack.index(max(slack))] -= 1
    return widths


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most so many characters, broken between words, or in one that is longer than a line."""
    lines = [""]
    for word in (piece for whole_word in _WORD.findall(text) for piece in _pieces(whole_word, width)):
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        elif lines[-1]:
            lines.append(word)
        else:
            lines[-1] = word
    return "\n".join(lines)


def _pieces(word: str, width: int) -> Iterator[str]:
    while cell_len(word) > width:
        end = max((word.rfind(sign, 0, width) + 1 for sign in "-_./"), default=0) or width
        yield word[:end]
        word = word[end:]
    yield word
