"""One published figure beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any


class FigureStatus(StrEnum):
    """Whether a figure is reproduced."""

    AGREES = "yes"
    DISAGREES = "NO"
    UNDETERMINED = "undetermined"
    CONTRADICTS = "contradicts"


@dataclass(frozen=True)
class Figure:
    """A published figure and what the reference tables give.

    Attributes:
        section: of the study it belongs to.
        what: the quantity.
        published: as printed.
        ours: recomputed; None where the tables do not determine it.
        tolerance: how far apart the two may be: half a unit of the last printed digit, 0 for counts.
        note: why it is undetermined, or what is particular about it.
        contradiction: the study's own figures or definitions contradict each other here.
    """

    section: str
    what: str
    published: float | int
    ours: float | int | None
    tolerance: float | int
    note: str = ""
    contradiction: bool = False

    @property
    def status(self) -> FigureStatus:
        """What the comparison says."""
        if self.ours is None:
            return FigureStatus.UNDETERMINED
        if self.contradiction:
            return FigureStatus.CONTRADICTS
        close = isfinite(self.ours) and abs(self.ours - self.published) <= self.tolerance + 1e-12
        return FigureStatus.AGREES if close else FigureStatus.DISAGREES

    def row(self) -> dict[str, Any]:
        """The figure as a table's row; numbers as text, in the precision that the tolerance asks for."""
        return {
            "section": self.section,
            "what": self.what,
            "published": f"{self.published:.6g}",
            "ours": "–" if self.ours is None else f"{self.ours:.6g}",
            "tolerance": f"{self.tolerance:.2g}",
            "status": str(self.status),
            "note": self.note,
        }


def rounding(digits: int) -> float:
    """The tolerance of a figure printed with so many decimals."""
    return 0.5 * 10.0**-digits
