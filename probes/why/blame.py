"""Which linears moved a cell's refusal margin: their shares of the shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from interp.model import HookedModel
from probes.attribution.cell import ALL, MarginObjective, attribute_cell, kinds
from probes.attribution.parts import Part
from probes.attribution.settings import PartKind
from probes.attribution.shares import AttributedPrompts
from probes.attribution.table import tabulate
from probes.causal.rankings import Scores, attribution_scores
from probes.margin.openings import Openings


@dataclass(frozen=True)
class Blame:
    """Shares of the shift, in nats.

    Attributes:
        n: harmful prompts that they come from.
        total: row "total" of the attribution table.
        modules: rows of the linears, and of parameters outside them that changed, the largest share first.
        linears: names of those with a share, the most to blame for the shift first.
        scores: of every linear, for restoring them in this order.
        complete: whether the attribution's gap is within its bounds.
        steps: that it took.
        warnings: of the attribution.
    """

    n: int
    total: pd.Series
    modules: pd.DataFrame
    linears: Sequence[str]
    scores: Scores
    complete: bool
    steps: int
    warnings: Sequence[str] = ()

    def table(self) -> pd.DataFrame:
        """The total, and the parts that have a share."""
        return pd.concat([self.total.to_frame().T, self.modules], ignore_index=True).astype(self.modules.dtypes)


def blame(
    name: str,
    baseline: HookedModel,
    cell: HookedModel,
    texts: Sequence[str],
    openings: Openings,
    seed: int = 0,
    batch_size: int | None = None,
) -> Blame:
    """Attribute the shift of the margin to the cell's linears.

    Args:
        name: the cell's.
        baseline: what it was quantized from.
        cell: the cell.
        texts: rendered harmful prompts.
        openings: of the baseline.
        seed: of the random signs that shares are compared with.
        batch_size: prompts per pass.
    """
    prompts = AttributedPrompts(texts, (("harmful", ALL),), torch.zeros(len(texts), dtype=torch.long))
    attribution, null = attribute_cell(
        baseline, cell, prompts, MarginObjective(openings), draws=1, seed=seed, batch_size=batch_size
    )
    table = tabulate(name, attribution, null, kinds(baseline), units=1)
    return Blame(
        n=len(texts),
        total=table[table["level"] == "total"].iloc[0],
        modules=_largest_first(table),
        linears=_most_to_blame_first(table, -1.0 if attribution.shift.mean() < 0 else 1.0),
        scores=attribution_scores(attribution, PartKind.MODULE),
        complete=attribution.complete(),
        steps=attribution.steps,
        warnings=attribution.warnings,
    )


def _most_to_blame_first(table: pd.DataFrame, direction: float) -> list[str]:
    """Linears by how far they pushed the margin the way it went."""
    rows = table[(table["level"] == "module") & (table["attribution"] != 0)]
    order = (direction * rows["attribution"]).sort_values(ascending=False, kind="stable").index
    return list(rows.loc[order, "module"])


def _largest_first(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["level"].isin(["module", "other"]) & (table["attribution"] != 0)]
    order = rows["attribution"].abs().sort_values(ascending=False, kind="stable").index
    return rows.loc[order].reset_index(drop=True)


def labelled(row: pd.Series) -> str:
    """A row of the attribution table for people: `L3 mlp.up_proj`."""
    if row["level"] == "other":
        return str(row["module"])
    return Part(PartKind.MODULE, int(row["layer"]), module=str(row["module"])).label
