"""`python -m probes` lists the probes."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import typer

PROBES = (
    "entropy",
    "direction",
    "calibration",
    "neurons",
    "margin",
    "geometry",
    "attribution",
    "causal",
    "quality",
    "refusal",
    "labels",
    "judges",
    "drift",
    "rtsi",
    "matrix",
    "why",
    "predict",
    "reproduce",
    "study",
    "report",
    "demo",
)
"""Modules with a command, `python -m probes.NAME`; the first line of a module's docstring says what it answers."""


def summary(name: str) -> str:
    """The first line of a probe's docstring, read without importing it (torch takes seconds)."""
    spec = find_spec(f"probes.{name}")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"probes.{name} is listed but not there")
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def main() -> None:
    """Print the probes, one a line."""
    width = max(map(len, PROBES))
    for name in PROBES:
        typer.echo(f"python -m probes.{name:{width}}  {summary(name)}")
    typer.echo("\nOptions of a probe: python -m probes.NAME --help")


if __name__ == "__main__":
    main()
