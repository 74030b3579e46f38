"""What is wrong with a study file, with the line it stands on."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Location = tuple[str | int, ...]
"""Keys and, in arrays, 0-based positions from the root to a value."""

_TOKEN = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'{3}.*?\'{3,5}|"(?:\\.|[^"\\])*"|'[^']*'|\#[^\n]*|[\[\]{}\n]''', re.DOTALL
)
"""What decides where a statement ends: texts and comments, in which nothing counts, brackets, and line feeds."""
_HEADER = re.compile(r"^\s*\[")


def key_lines(text: str) -> dict[Location, int]:
    """Location of every table and key → its line, 1-based. Within a value of several lines it is the first line.

    Args:
        text: valid TOML.
    """
    lines: dict[Location, int] = {(): 1}
    counts: dict[Location, int] = {}
    table: Location = ()
    for number, statement in _statements(text):
        parsed = tomllib.loads(statement)
        if _HEADER.match(statement):
            table = _enter(parsed, counts)
            lines.setdefault(table, number)
        else:
            for location in _locations(parsed):
                lines.setdefault((*table, *location), number)
    return lines


def line_of(lines: dict[Location, int], location: Location) -> int:
    """The line of a location, or of the innermost table around it that is in the file."""
    while location not in lines:
        location = location[:-1]
    return lines[location]


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Headers and key-value pairs with the number of their first line; a value may go over several lines."""
    start, number, lines, depth = 0, 1, 0, 0
    for token in _TOKEN.finditer(text + "\n"):
        sign = token[0]
        lines += sign.count("\n")
        depth += (sign in ("[", "{")) - (sign in ("]", "}"))
        if sign == "\n" and depth == 0:
            statement = text[start : token.start()]
            if statement.strip() and not statement.lstrip().startswith("#"):
                yield number, statement
            start, number, lines = token.end(), number + lines, 0


def _enter(header: dict[str, Any], counts: dict[Location, int]) -> Location:
    """The location of a header's table; `counts` holds how many elements each array of tables has so far."""
    location: Location = ()
    here: Any = header
    while here:
        (key, inside), *_ = here.items()
        location = (*location, key)
        if isinstance(inside, list):  # only the last key of [[a.b]] is one
            counts[location] = counts.get(location, 0) + 1
            inside = inside[0]
        if location in counts:
            location = (*location, counts[location] - 1)
        here = inside
    return location


def _locations(value: Any, location: Location = ()) -> Iterator[Location]:
    """The location of everything in a value."""
    if location:
        yield location
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _locations(inside, (*location, key))
    elif isinstance(value, list):
        for position, inside in enumerate(value):
            yield from _locations(inside, (*location, position))


@dataclass(frozen=True)
class Problem:
    """A mistake in a study file.

    Attributes:
        where: it is.
        what: is wrong, and what would be right.
    """

    where: Location
    what: str


def suggest(wrong: str, right: Any, many: int = 20) -> str:
    """What was perhaps meant, or what there is; the first of very many."""
    known = list(map(str, right))
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of {', '.join(known[:many])}{' …' if len(known) > many else ''}"
