"""What a check measured, as it is kept: the tables that the verdict is worked out from, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from interp.errors import InputError
from probes.harness.results import Result, read_result

PARTS = ("check_weights", "entropy", "margin", "refusal", "drift")
"""The results beside `check` that a verdict is worked out from."""


@dataclass
class CheckResult(Result):
    """A check: one row per cell, and the tables that it consists of.

    Attributes:
        parts: name → result, those in `PARTS` among them.
    """

    parts: dict[str, Result] = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The parts, each with what belongs to it."""
        return [further for part in self.parts.values() for further in (*part.beside, part)]

    def rows(self, part: str, cell: str) -> pd.DataFrame:
        """The rows that a part has of a cell.

        Args:
            part: one of `PARTS`.
            cell: its name, or that of the baseline.
        """
        table = self.parts[part].table
        return table[table["cell"] == cell] if "cell" in table else table


def read_check(directory: Path) -> CheckResult:
    """Read what `python -m probes.check --out DIR` wrote.

    Raises:
        InputError: no such folder, or no check in it; a damaged file.

    Example:
        >>> verdicts(read_check(Path("results")), Bounds(max_refusal_drop=0.02))
    """
    document = directory / "check.json"
    if not document.is_file():
        raise InputError(
            f"{directory} holds no check.json",
            "the folder that a check was written into",
            "Measure one first: python -m probes.check --baseline PATH --quantized PATH --out DIR",
        )
    parts = {name: read_result(directory / f"{name}.json") for name in PARTS}
    return CheckResult(**vars(read_result(document)), parts=parts)
