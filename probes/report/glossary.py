"""The terms of reports and tables, in whole sentences: one file of data for the report's last section and for the docs.

python -m probes.report.glossary > docs/glossary.md
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from probes.report.run import Run

DATA = Path(__file__).with_name("data") / "glossary.toml"
HEAD = """# Glossary

The terms of reports and tables. Every report ends with them, too. What each number can and cannot guarantee is in
[How to read the numbers](reading-the-numbers.md).
"""


class Term(NamedTuple):
    """One term.

    Attributes:
        name: as texts use it.
        meaning: in whole sentences.
    """

    name: str
    meaning: str

    @property
    def anchor(self) -> str:
        """Where the report's glossary explains it."""
        return "term-" + "-".join(re.findall(r"\w+", self.name.lower()))


@cache
def terms() -> tuple[Term, ...]:
    """All terms, in the order in which they are needed."""
    entries = tomllib.loads(DATA.read_text(encoding="utf-8"))["terms"]
    return tuple(Term(entry["name"], entry["meaning"]) for entry in entries)


def term(name: str) -> Term:
    """The term of this name; a KeyError where there is none."""
    return {each.name: each for each in terms()}[name]


def build(run: Run) -> tuple[Term, ...]:
    """What the report's section shows, the same for every run."""
    return terms()


def markdown() -> str:
    """The page docs/glossary.md."""
    return "\n".join([HEAD, *(f"## {each.name}\n\n{each.meaning}\n" for each in terms())])


if __name__ == "__main__":
    print(markdown(), end="")
