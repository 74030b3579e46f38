"""A probe's table that draws itself and says in a notebook what the reader must know."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from probes.harness.results import Result

Draw = Callable[..., Figure]


class MeasuredTable(pd.DataFrame):
    """A pandas table; what is made of it (`table[…]`, `table.merge(…)`) is an ordinary one.

    Attributes:
        result: where it comes from: settings, warnings, what is beside it.

    Example:
        >>> study.entropy[study.entropy["prompts"] == "harmful"]
        >>> study.entropy.plot().savefig("entropy.png")
    """

    _metadata = ("result", "draw")
    result: Result
    draw: Draw | None

    @classmethod
    def of(cls, result: Result, draw: Draw | None = None) -> MeasuredTable:
        """The table of a result.

        Args:
            result: of a probe.
            draw: its figure, called with the table; without one `plot` is pandas' own.
        """
        table = cls(result.table)
        table.result, table.draw = result, draw
        return table

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    @property
    def warnings(self) -> list[str]:
        """What the reader of the numbers must know."""
        return list(self.result.warnings)

    def plot(self, **options: Any) -> Any:  # type: ignore[override]
        """The probe's figure, as in the report: a matplotlib `Figure`, which a notebook shows.

        Args:
            options: of the figure (`site` and `ratio` of neurons); where the probe has none, of pandas' own `plot`.
        """
        plain = pd.DataFrame(self)
        return plain.plot(**options) if self.draw is None else self.draw(plain, **options)

    def _repr_html_(self) -> str:
        """The table, and its warnings; all text escaped."""
        warnings = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        name, table = html.escape(self.result.probe), super()._repr_html_()  # type: ignore[misc]
        return f"<div><b>{name}</b>{table}{f'<ul>{warnings}</ul>' if warnings else ''}</div>"
