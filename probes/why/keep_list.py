"""Which linears of a cell to keep at higher precision, what that costs, and the list as programs take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from interp.model import HookedModel
from interp.quantize.mixed_precision import (
    gptqmodel_dynamic,
    llama_cpp_tensor_types,
    llm_compressor_ignore,
    mean_bits,
    whole_groups,
)
from probes.attribution.settings import PartKind
from probes.stats.intervals import ALPHA
from probes.why.settings import SHARE

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


NO_CHOICE = Choice([], False, "the shift is within chance on these prompts, so there is nothing to give back")
"""What to keep where nothing is known to have been lost."""


@dataclass(frozen=True)
class KeepList:
    """The linears to keep in float16.

    Attributes:
        choice: what to keep, the most to blame first.
        given: whether its length was asked for; else it was chosen on the prompts that it is measured on.
        bits: per weight of the cell's linears; NaN for a cell made in memory.
        kept: the choice, and with `fused` what completes its groups.
        kept_bits: bits per weight with these in float16.
        whole: the choice and what completes its groups, whether or not that is kept.
        whole_bits: bits per weight with these in float16.
        forms: program → `kept` as it takes it.
    """

    choice: Choice
    given: bool
    bits: float
    kept: Sequence[str]
    kept_bits: float
    whole: Sequence[str]
    whole_bits: float
    forms: Mapping[str, object]


def keep_list(
    choice: Choice, baseline: HookedModel, cell: HookedModel, *, given: bool, fused: bool = False
) -> KeepList:
    """Complete a choice, and say what it costs.

    Args:
        choice: the linears.
        baseline: whose architecture says which linears belong together.
        cell: whose bits are counted.
        given: whether the length was asked for.
        fused: also keep what completes groups of linears that runtimes fuse.
    """
    whole = whole_groups(choice.linears, baseline.architecture)
    linears = whole if fused else choice.linears
    return KeepList(
        choice=choice,
        given=given,
        bits=float("nan") if cell.checkpoint is None else cell.checkpoint.bits_per_weight(),
        kept=linears,
        kept_bits=_bits_with(cell, linears),
        whole=whole,
        whole_bits=_bits_with(cell, whole),
        forms=forms(linears, baseline),
    )


def choose(curve: pd.DataFrame, ranked: Sequence[str], keep: int | None = None, share: float = SHARE) -> Choice:
    """The shortest measured list, by attribution, that gives back enough of the shift and more than random lists do.

    Args:
        curve: rows of `causal_restore`, with the rankings by attribution and at least one random set per length.
        ranked: linears, the most to blame first.
        keep: the length of the list, if it is given.
        share: of the shift that is enough.

    Without such a length: the shortest that gives back enough, which may be chance; without one, or without a shift
    that could be given back, a few of the most to blame. Then the choice is not supported.
    """
    rows = curve[(curve["ranking"] == "attribution") & (curve["kind"] == str(PartKind.MODULE)) & (curve["draws"] > 0)]
    rows = rows.sort_values("k")
    enough = rows[rows["share"] >= share]
    better = enough[enough["p"] <= ALPHA]
    if keep is not None:
        same = better[better["k"] == keep]
        reason = (
            f"it gives back {share:.0%} of the shift, and more than random lists"
            if len(same)
            else "its length was given"
        )
        return Choice(list(ranked[:keep]), bool(len(same)), reason)
    if len(better):
        return Choice(
            list(ranked[: int(better["k"].iloc[0])]),
            True,
            f"the shortest list that gives back {share:.0%} of the shift and more than random ones (p ≤ {ALPHA:g})",
        )
    if len(enough):
        p = enough["p"].iloc[0]
        reason = (
            f"the shortest list that gives back {share:.0%}, which is not shown to be more than random (p = {p:.2f})"
        )
        return Choice(list(ranked[: int(enough["k"].iloc[0])]), False, reason)
    none = (
        "the shift is within chance, so nothing can be said to come back"
        if rows["share"].isna().all()
        else (f"no list gives back {share:.0%} of the shift")
    )
    return Choice(list(ranked[:FALLBACK]), False, f"{none}; these are the most to blame")


def forms(linears: Sequence[str], model: HookedModel) -> dict[str, object]:
    """The list as GPTQModel, llm-compressor and llama.cpp take it; nothing where it is empty."""
    if not linears:
        return {}
    return {
        "gptqmodel_dynamic": gptqmodel_dynamic(linears),
        "llm_compressor_ignore": llm_compressor_ignore(linears),
        "llama_cpp_options": llama_cpp_tensor_types(linears, model.architecture, model.n_layers),
    }


def _bits_with(cell: HookedModel, linears: Sequence[str]) -> float:
    return float("nan") if cell.checkpoint is None else mean_bits(cell.checkpoint, linears)
