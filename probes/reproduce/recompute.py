"""Recompute every published figure that the reference tables determine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from probes.harness.results import Result
from probes.reproduce import figures_engines, figures_probes, figures_regimes, figures_rtsi
from probes.reproduce.figures import Figure
from probes.reproduce.published import CITATION

SECTIONS: tuple[Callable[[], list[Figure]], ...] = (
    figures_regimes.figures,
    figures_rtsi.figures,
    figures_probes.figures,
)


@dataclass(repr=False)
class Reproduction(Result):
    """Every figure, with the engine-matched deltas, written beside it as `reproduce_engines`."""

    engines: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The engine-matched deltas."""
        return (self.engines,)


def reproduce() -> Reproduction:
    """Recompute the study's figures.

    Table: a row a figure with `section`, `what`, `published`, `ours`, `tolerance`, `status` and `note`. `status` is
    `yes` or `NO` where the tables determine the figure, `undetermined` where they do not, `contradicts` where the
    study's own figures contradict each other or its definition; `note` then says why.

    `reproduce_engines`: the AWQ and GPTQ deltas of three models against baselines of the cells' own engine family, see
    `probes.reproduce.figures_engines.matched`.

    Example:
        >>> reproduce().table.query("status != 'yes'")
    """
    figures = [figure for section in SECTIONS for figure in section()]
    table = pd.DataFrame([figure.row() for figure in figures])
    return Reproduction("reproduce", table, {"source": CITATION}, engines=figures_engines.matched())
