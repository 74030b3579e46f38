"""What the site of the documentation needs beyond Zensical and mkdocstrings, for our pages and docstrings.

`zensical.toml` names both classes; `python -m zensical` finds them, because it starts in the repository's root.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from typing import Any

import griffe
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_MARKED = re.compile(r"^(```\w+) norun$")
_EXAMPLE = re.compile(r"^Example:$", re.M)
_SECTION = re.compile(r"(Args|Attributes|Examples|Raises|Returns|Yields):")
_NAMES = re.compile(r"- [a-z_]\w*(, [a-z_]\w*)*(?=:)")


class Docstrings(griffe.Extension):
    """Reads our packages as a user sees them: Griffe runs no code, and Google's style knows no lists of columns."""

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        """Export what the imported package lists, where `lazy_loader` reads the names from a stub."""
        if "lazy_loader" in mod.members:
            mod.exports = list(import_module(mod.path).__all__)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Show examples as code, which Google's style does of "Examples:" alone, and indented lines as a list."""
        if obj.docstring:
            obj.docstring.value = with_lists(_EXAMPLE.sub("Examples:", obj.docstring.value))


def with_lists(docstring: str) -> str:
    """A docstring whose indented lines below a sentence are a Markdown list; sections and code stay as they are."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join("\n".join(_with_list(paragraph)) for paragraph in paragraphs)


def _with_list(paragraph: str) -> Iterator[str]:
    """The lines of one paragraph."""
    lines = paragraph.splitlines()
    if not lines or lines[0].startswith(" ") or _SECTION.fullmatch(lines[0]):
        yield from lines
        return
    for indented, part in groupby(lines, key=lambda line: line.startswith("    ")):
        if indented:
            yield from ["", *map(_item, part), ""]
        else:
            yield from part


def _item(line: str) -> str:
    """A line of a list, or the continuation of one; names of columns at its beginning as code."""
    text = line.removeprefix("    ")
    if text.startswith(" "):
        return text
    return _NAMES.sub(lambda names: re.sub(r"\w+", r"`\g<0>`", names[0]), f"- {text}")


class Unmarked(Preprocessor):
    """Takes the mark `norun` from shell blocks: it is for `scripts/document_commands.py`, and no fence to Markdown."""

    def run(self, lines: list[str]) -> list[str]:
        """The page's lines without marks."""
        return [_MARKED.sub(r"\1", line) for line in lines]


class Marks(Extension):
    """Runs `Unmarked` before fences are read."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register the preprocessor above those of superfences (25)."""
        md.preprocessors.register(Unmarked(md), "unmarked", 100)
