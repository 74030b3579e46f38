"""Every reader of the project by name, with what writes valid input for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fuzz.worker import Reader

Make = Callable[[Path], Reader]
MAKERS: dict[str, Make] = {}
"""Reader's name → what writes its seeds into a folder and returns it."""


def target(make: Make) -> Make:
    """Register a maker under its function's name."""
    MAKERS[make.__name__.replace("_", "-")] = make
    return make


def folder(root: Path, name: str, content: str) -> Path:
    """A folder with one text file more."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content, encoding="utf-8")
    return root
