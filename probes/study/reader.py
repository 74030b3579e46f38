"""Reads a study file and says everything that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from interp.documents import parse_toml, read_text
from interp.errors import InputError
from probes.study.problems import Location, Problem, key_lines, line_of, suggest
from probes.study.schema import MAX_BYTES, Behaviour, Bounds, Calibration, Cell, Judges, Model, Prompts, Study

_TABLES: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): Study,
    ("models",): Model,
    ("models", "cells"): Cell,
    ("prompts",): Prompts,
    ("behaviour",): Behaviour,
    ("judges",): Judges,
    ("rtsi",): Calibration,
    ("bounds",): Bounds,
}
_NOT_KEYS = {"text", "directory"}
MOST_LISTED = 20
"""Mistakes that one message lists."""


def read_study(file: str | Path) -> Study:
    """Read and check a study file.

    Args:
        file: TOML; `python -m probes.study init` writes a commented one.

    Raises:
        InputError: the file cannot be read, or everything that is wrong in it, each with its line and field.

    Example:
        >>> read_study("study.toml").models
    """
    file = Path(file)
    expected = "a study file in UTF-8 (`python -m probes.study init` writes one)"
    text = read_text(file, expected, MAX_BYTES).replace("\r\n", "\n")
    return parse_study(text, file.absolute().parent, str(file))


def parse_study(text: str, directory: Path, name: str = "The study", on_disk: bool = True) -> Study:
    """The study that `read_study` reads, from the text of a file.

    Args:
        text: TOML.
        directory: what relative paths start from.
        name: of the file, for messages.
        on_disk: whether what the file names must be there; a finished run is looked at without.
    """
    from probes.study.checks import check

    document = parse_toml(text, name)
    problems = list(_schema_problems(document))
    problems += check(document, directory) if on_disk else ()
    if problems:
        raise InputError(_listing(name, problems, key_lines(text)), do="Correct them and run the same command again")
    return Study(**document, text=text, directory=directory)


def _schema_problems(document: dict[str, Any]) -> Iterator[Problem]:
    for key in _NOT_KEYS & set(document):
        yield Problem((key,), f"unknown key; {suggest(key, _keys(Study))}")
    try:
        Study(**{key: value for key, value in document.items() if key not in _NOT_KEYS})
    except ValidationError as error:
        for detail in error.errors():
            where = detail["loc"]
            if detail["type"] == "extra_forbidden":
                table = _TABLES[tuple(key for key in where[:-1] if isinstance(key, str))]
                yield Problem(where, f"unknown key; {suggest(str(where[-1]), _keys(table))}")
            elif detail["type"] == "missing":
                yield Problem(where, "is missing")
            else:
                yield Problem(where, f"is {detail['input']!r:.60}: {detail['msg'][0].lower()}{detail['msg'][1:]}")


def _keys(table: type[BaseModel]) -> list[str]:
    return [key for key in table.model_fields if key not in _NOT_KEYS]


def _listing(name: str, problems: list[Problem], lines: dict[Location, int]) -> str:
    described = sorted({(line_of(lines, p.where), f"{_field(p.where)}: {p.what}") for p in problems})
    count = f"{len(described)} mistakes" if len(described) > 1 else "a mistake"
    listed = "\n".join(f"  line {line}, {what}" for line, what in described[:MOST_LISTED])
    more = f"\n  and {len(described) - MOST_LISTED} more" if len(described) > MOST_LISTED else ""
    return f"{name} has {count}:\n{listed}{more}"


def _field(where: Location) -> str:
    """A location as people write it: models[0].cells[1].path; array positions count from 0."""
    text = ""
    for key in where:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text or "the file"
