"""What comes back when linears of the baseline are put into a cell, by the length of the list."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from probes.attribution.settings import PartKind
from probes.causal.exchange import Aim, Interventions
from probes.causal.rankings import Scores, weight_error_scores
from probes.causal.restoration import Plan, restore_rows


@dataclass(frozen=True)
class Restoration:
    """How much of the shift comes back.

    Attributes:
        curve: rows of `causal_restore` for linears, ranked by attribution (beside random lists) and by weight error,
            and the row in which everything is put back.
    """

    curve: pd.DataFrame

    @property
    def linears(self) -> pd.DataFrame:
        """The rows of lists of linears."""
        return self.curve[self.curve["kind"] == "module"]

    @property
    def shares(self) -> bool:
        """Whether there is a share of the shift at any length; there is none where the shift is within chance."""
        return bool(self.linears["share"].notna().any())

    def by(self, ranking: str) -> pd.DataFrame:
        """The rows of one ranking, the shortest list first."""
        return self.linears[self.linears["ranking"] == ranking]


def restore_linears(models: Interventions, by_blame: Scores, draws: int, seed: int = 0) -> Restoration:
    """Put the baseline's linears into the cell, those most to blame first, and those with the largest error first.

    Args:
        models: baseline and cell, aligned.
        by_blame: scores of the linears by attribution.
        draws: random lists beside every length of the list by attribution.
        seed: of these.
    """
    plan = Plan((Aim.RESTORE,), kinds=(PartKind.MODULE,), draws=draws, refusals=False, every_control=True, seed=seed)
    by_error = weight_error_scores(models.baseline, models.cell, models.parts, PartKind.MODULE)
    rows = restore_rows(models, {PartKind.MODULE: {"attribution": by_blame}}, plan)
    uncontrolled = restore_rows(
        models, {PartKind.MODULE: {"weight_error": by_error}}, replace(plan, draws=0, every_control=False)
    )
    return Restoration(pd.DataFrame([*rows, *(row for row in uncontrolled if row["kind"] == "module")]))
