"""One cell explained: how far its refusal margin moved, by which linears, and what putting them back gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.model import HookedModel
from interp.pairs.alignment import aligned
from interp.quantize.mixed_precision import (
    gptqmodel_dynamic,
    llama_cpp_tensor_types,
    llm_compressor_ignore,
    mean_bits,
    whole_groups,
)
from probes.attribution.cell import ALL, attribute_cell, kinds, margin_objective
from probes.attribution.parts import Part, Parts
from probes.attribution.settings import PartKind
from probes.attribution.shares import AttributedPrompts
from probes.attribution.table import tabulate
from probes.causal.exchange import Aim, Interventions
from probes.causal.experiments import Sample
from probes.causal.rankings import attribution_scores, weight_error_scores
from probes.causal.restoration import Plan, restore_rows
from probes.margin.openings import Openings
from probes.margin.refusal_margin import MarginRuns
from probes.stats.intervals import Estimate, mean_interval
from probes.why.settings import DRAWS

ENOUGH = 0.5
"""Share of the shift that a list has to give back."""
ALPHA = 0.05
FALLBACK = 4
"""Length of the list where no length gives back enough."""


@dataclass(frozen=True)
class Choice:
    """Which linears to keep.

    Attributes:
        linears: their names, the most to blame first.
        supported: whether putting them back gave back enough of the shift, and more than random linears of their sizes.
        why: in words.
    """

    linears: list[str]
    supported: bool
    why: str


@dataclass(frozen=True)
class Explanation:
    """Everything known of one cell. Margins and shifts in nats.

    Attributes:
        cell: its name.
        n: prompts of each side that margins and restoring were measured on.
        n_ranked: harmful prompts that the attribution comes from.
        held_out: whether these are others.
        before: mean margin of harmful prompts in the baseline.
        after: in the cell.
        shift: cell − baseline.
        harmless_shift: the same of harmless prompts.
        to_answer: harmful prompts whose margin was a refusal's and is no longer.
        to_refusal: the other way round.
        total: row "total" of the attribution table.
        modules: rows of the linears, and of parameters outside them that changed, the largest share first.
        complete: whether the attribution's gap is within its bounds.
        steps: that it took.
        curve: rows of `causal_restore` for linears, ranked by attribution and by weight error.
        choice: what to keep.
        given: whether its length was asked for; else it was chosen on the prompts that it is measured on.
        bits: per weight of the cell's linears; NaN for a cell made in memory.
        kept: the choice, and with `fused` what completes its groups.
        kept_bits: bits per weight with these in float16.
        whole: the choice and what completes its groups, whether or not that is kept.
        whole_bits: bits per weight with these in float16.
        forms: program → `kept` as it takes it.
        warnings: of the attribution.
    """

    cell: str
    n: int
    n_ranked: int
    held_out: bool
    before: Estimate
    after: Estimate
    shift: Estimate
    harmless_shift: Estimate
    to_answer: int
    to_refusal: int
    total: pd.Series
    modules: pd.DataFrame
    complete: bool
    steps: int
    curve: pd.DataFrame
    choice: Choice
    given: bool
    bits: float
    kept: Sequence[str]
    kept_bits: float
    whole: Sequence[str]
    whole_bits: float
    forms: Mapping[str, object]
    warnings: Sequence[str] = ()

    def parts_table(self) -> pd.DataFrame:
        """The total, and the parts that have a share."""
        return pd.concat([self.total.to_frame().T, self.modules], ignore_index=True).astype(self.modules.dtypes)


def explain(
    name: str,
    baseline: HookedModel,
    cell: HookedModel,
    sample: Sample,
    openings: Openings,
    *,
    keep: int | None = None,
    fused: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int | None = None,
) -> Explanation:
    """Explain one cell.

    Args:
        name: its name.
        baseline: what it was quantized from.
        cell: the cell; its weights are exchanged for a moment and are afterwards what they were.
        sample: prompts to attribute on and, others, to measure on.
        openings: of the baseline.
        keep: how many linears to keep; default the shortest list that gives back enough.
        fused: also keep what completes groups of linears that runtimes fuse.
        draws: random lists beside every length.
        seed: of these.
        batch_size: prompts per pass.
    """
    texts = sample.ranked["harmful"]
    prompts = AttributedPrompts(texts, (("harmful", ALL),), torch.zeros(len(texts), dtype=torch.long))
    found, null = attribute_cell(
        baseline, cell, prompts, margin_objective(openings), draws=1, seed=seed, batch_size=batch_size
    )
    table = tabulate(name, found, null, kinds(baseline), units=1)
    parts = Parts.of(baseline)
    runs = {side: MarginRuns.of(baseline, given, openings, batch_size) for side, given in sample.measured.items()}
    margins = {side: (run.margins(baseline).double(), run.margins(cell).double()) for side, run in runs.items()}
    with aligned(cell, baseline):
        models = Interventions(baseline, cell, runs["harmful"], sample.measured["harmful"], parts)
        plan = Plan(
            (Aim.RESTORE,), kinds=(PartKind.MODULE,), draws=draws, refusals=False, every_control=True, seed=seed
        )
        by_attribution = {"attribution": attribution_scores(found, PartKind.MODULE)}
        by_error = {"weight_error": weight_error_scores(baseline, cell, parts, PartKind.MODULE)}
        rows = restore_rows(models, {PartKind.MODULE: by_attribution}, plan)
        uncontrolled = replace(plan, draws=0, every_control=False)
        rows += [
            row for row in restore_rows(models, {PartKind.MODULE: by_error}, uncontrolled) if row["kind"] == "module"
        ]
        curve = pd.DataFrame(rows)
    blamed = table[(table["level"] == "module") & (table["attribution"] != 0)]
    direction = -1.0 if found.shift.mean() < 0 else 1.0
    order = (direction * blamed["attribution"]).sort_values(ascending=False, kind="stable").index
    choice = choose(curve, list(blamed.loc[order, "module"]), keep)
    whole = whole_groups(choice.linears, baseline.architecture)
    kept = whole if fused else choice.linears
    before, after = margins["harmful"]
    return Explanation(
        cell=name,
        n=len(before),
        n_ranked=len(texts),
        held_out=sample.held_out,
        before=mean_interval(before),
        after=mean_interval(after),
        shift=mean_interval(after - before),
        harmless_shift=mean_interval(margins["harmless"][1] - margins["harmless"][0]),
        to_answer=_crossing(before, after),
        to_refusal=_crossing(after, before),
        total=table[table["level"] == "total"].iloc[0],
        modules=_largest_first(table),
        complete=found.complete(),
        steps=found.steps,
        curve=curve,
        choice=choice,
        given=keep is not None,
        bits=float("nan") if cell.checkpoint is None else cell.checkpoint.bits_per_weight(),
        kept=kept,
        kept_bits=_bits_with(cell, kept),
        whole=whole,
        whole_bits=_bits_with(cell, whole),
        forms=forms(kept, baseline),
        warnings=found.warnings,
    )


def choose(curve: pd.DataFrame, ranked: Sequence[str], keep: int | None = None) -> Choice:
    """The shortest measured list, by attribution, that gives back half of the shift and more than random lists do.

    Args:
        curve: rows of `causal_restore`, with the rankings by attribution and at least one random set per length.
        ranked: linears, the most to blame first.
        keep: the length of the list, if it is given.

    Without such a length: the shortest that gives back half, which may be chance; without one, or without a shift that
    could be given back, a few of the most to blame. Then the choice is not supported.
    """
    rows = curve[(curve["ranking"] == "attribution") & (curve["kind"] == str(PartKind.MODULE)) & (curve["draws"] > 0)]
    rows = rows.sort_values("k")
    enough = rows[rows["share"] >= ENOUGH]
    better = enough[enough["p"] <= ALPHA]
    if keep is not None:
        same = better[better["k"] == keep]
        said = "it gives back half of the shift, and more than random lists" if len(same) else "its length was given"
        return Choice(list(ranked[:keep]), bool(len(same)), said)
    if len(better):
        return Choice(
            list(ranked[: int(better["k"].iloc[0])]),
            True,
            f"the shortest list that gives back {ENOUGH:.0%} of the shift and more than random ones (p ≤ {ALPHA:g})",
        )
    if len(enough):
        p = enough["p"].iloc[0]
        said = (
            f"the shortest list that gives back {ENOUGH:.0%}, which is not shown to be more than random (p = {p:.2f})"
        )
        return Choice(list(ranked[: int(enough["k"].iloc[0])]), False, said)
    none = (
        "the shift is within chance, so nothing can be said to come back"
        if rows["share"].isna().all()
        else (f"no list gives back {ENOUGH:.0%} of the shift")
    )
    return Choice(list(ranked[:FALLBACK]), False, f"{none}; these are the most to blame")


def forms(linears: Sequence[str], model: HookedModel) -> dict[str, object]:
    """The list as GPTQModel, llm-compressor and llama.cpp take it."""
    return {
        "gptqmodel_dynamic": gptqmodel_dynamic(linears),
        "llm_compressor_ignore": llm_compressor_ignore(linears),
        "llama_cpp_options": llama_cpp_tensor_types(linears, model.architecture, model.n_layers),
    }


def _bits_with(cell: HookedModel, kept: Sequence[str]) -> float:
    return float("nan") if cell.checkpoint is None else mean_bits(cell.checkpoint, kept)


def _crossing(above: Float[Tensor, " n"], below: Float[Tensor, " n"]) -> int:
    return int(((above > 0) & (below <= 0)).sum())


def _largest_first(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[table["level"].isin(["module", "other"]) & (table["attribution"] != 0)]
    order = rows["attribution"].abs().sort_values(ascending=False, kind="stable").index
    return rows.loc[order].reset_index(drop=True)


def labelled(row: pd.Series) -> str:
    """A row of the attribution table for people: `L3 mlp.up_proj`."""
    if row["level"] == "other":
        return str(row["module"])
    return Part(PartKind.MODULE, int(row["layer"]), module=str(row["module"])).label
