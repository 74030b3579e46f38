"""One cell explained: how far its refusal margin moved, by which linears, and what putting them back gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from interp.model import HookedModel
from interp.pairs.alignment import aligned
from probes.attribution.parts import Parts
from probes.causal.exchange import Interventions
from probes.causal.experiments import Sample
from probes.harness.pieces import kept
from probes.margin.openings import Openings
from probes.margin.refusal_margin import MarginRuns
from probes.stats.intervals import Estimate
from probes.why.blame import Blame, blame
from probes.why.doubt import Doubt, doubt_of
from probes.why.keep_list import NO_CHOICE, KeepList, choose, keep_list
from probes.why.margin_shift import MarginShift, margin_shift
from probes.why.restored import Restoration, restore_linears
from probes.why.rivals import Rival, rivals
from probes.why.settings import DRAWS, SHARE


@dataclass(frozen=True)
class Explanation:
    """Everything known of one cell.

    Attributes:
        cell: its name.
        held_out: whether the blame comes from other prompts than margins and restoring were measured on.
        margin: how far the margin moved.
        blame: which linears moved it.
        restoration: what putting them back gives.
        keep: which to keep at higher precision.
        rivals: the explanations that compete, and which fits.
    """

    cell: str
    held_out: bool
    margin: MarginShift
    blame: Blame
    restoration: Restoration
    keep: KeepList
    rivals: Sequence[Rival]


def explain(
    name: str,
    baseline: HookedModel,
    cell: HookedModel,
    sample: Sample,
    openings: Openings,
    *,
    keep: int | None = None,
    share: float = SHARE,
    fused: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int | None = None,
    beside: Mapping[str, pd.DataFrame] | None = None,
) -> Explanation:
    """Explain one cell.

    Args:
        name: its name.
        baseline: what it was quantized from.
        cell: the cell; its weights are exchanged for a moment and are afterwards what they were.
        sample: prompts to attribute on and, others, to measure on.
        openings: of the baseline.
        keep: how many linears to keep; default the shortest list that gives back enough, none where the shift is
            within chance.
        share: of the shift that is enough.
        fused: also keep what completes groups of linears that runtimes fuse.
        draws: random lists beside every length.
        seed: of these.
        batch_size: prompts per pass.
        beside: what other probes measured of the same two, see `probes.why.rivals.measured_beside`.
    """
    blamed = blame(name, baseline, cell, sample.ranked["harmful"], openings, seed, batch_size)
    runs = {side: MarginRuns.of(baseline, texts, openings, batch_size) for side, texts in sample.measured.items()}
    margin = margin_shift(baseline, cell, runs)
    with aligned(cell, baseline):
        models = Interventions(baseline, cell, runs["harmful"], sample.measured["harmful"], Parts.of(baseline))
        restoration = restore_linears(models, blamed.scores, draws, seed)
    nothing_lost = keep is None and margin.within_chance
    choice = NO_CHOICE if nothing_lost else choose(restoration.curve, blamed.linears, keep, share)
    kept_linears = keep_list(choice, baseline, cell, given=keep is not None, fused=fused)
    measured = sample.measured["harmful"]
    doubt = kept(["doubt"], lambda: doubt_of(baseline, cell, measured, openings, batch_size), [Doubt, Estimate])
    stored_as = "memory" if cell.checkpoint is None else cell.checkpoint.format
    competing = rivals(margin, kept_linears, doubt, beside or {}, stored_as)
    return Explanation(name, sample.held_out, margin, blamed, restoration, kept_linears, competing)
