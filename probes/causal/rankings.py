"""Which parts of a model to look at first, by what they are said to do, and random parts to hold them against."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.errors import InputError
from interp.memory import freed_at_once
from interp.model import HookedModel
from interp.running_stats import RunningStats
from probes.attribution.parts import Part, Parts, WeightAxis, linear_weight
from probes.attribution.settings import PartKind
from probes.attribution.shares import Attribution
from probes.neurons.metrics import contrast
from probes.neurons.settings import Site
from probes.neurons.sites import Place, as_units

Scores = Mapping[Part, float]
SITES = {PartKind.NEURON: Site.MLP, PartKind.HEAD: Site.HEAD}
"""Kinds of parts that have an activation of their own, and so a contrast."""

ATTRIBUTION_COLUMNS = ("cell", "prompts", "category", "level", "layer", "module", "unit", "attribution", "shift")


def ranked(scores: Scores) -> list[Part]:
    """The parts, the largest score first; of equal ones the first in the model."""
    return sorted(scores, key=lambda part: (-scores[part], part))


def attribution_scores(found: Attribution, kind: PartKind) -> Scores:
    """How much of the shift of the margin each part carries, in the direction of the shift, nats: the mean share over
    the prompts, positive where it pushes where the cell went."""
    direction = _sign(found.shift.mean().item())
    shares = found.scores(kind, range(len(found.prompts.strata)))
    return {part: direction * share for part, share in shares.items()}


def tabulated_scores(table: pd.DataFrame, cell: str, parts: Parts, kind: PartKind) -> Scores:
    """The scores of `attribution_scores`, from the table of `python -m probes.attribution`, over all harmful prompts.

    Neurons that the table does not list, being small, have 0.

    Raises:
        InputError: not such a table; it has no rows for the cell.
    """
    if missing := {*ATTRIBUTION_COLUMNS} - {*table}:
        raise InputError(f"The attribution table has no column {min(missing)!r}", "what probes.attribution wrote")
    rows = table[(table["cell"] == cell) & (table["prompts"] == "harmful") & (table["category"] == "all")]
    total, listed = rows[rows["level"] == "total"], rows[rows["level"] == str(kind)]
    if total.empty or listed.empty:
        raise InputError(
            f"The attribution table has no {kind}s of the cell {cell!r} on harmful prompts",
            f"rows for one of its cells, {', '.join(dict.fromkeys(map(str, table['cell'])))}",
            "Give the cell the same name as there, with --quantized NAME=PATH",
        )
    if len(total) > 1:
        raise InputError(
            f"The attribution table has {len(total)} totals of the cell {cell!r} on harmful prompts",
            "one run of probes.attribution, with every cell once",
        )
    direction = _sign(total["shift"].item())
    scores = dict.fromkeys(parts.every(kind), 0.0)
    for layer, module, unit, share in listed[["layer", "module", "unit", "attribution"]].itertuples(index=False):
        named = kind is PartKind.MODULE
        part = Part(kind, int(layer), int(unit) if kind in SITES else -1, str(module) if named else "")
        if part not in scores:
            raise InputError(f"The attribution table lists {part.label}, which the model does not have")
        scores[part] = direction * float(share)
    return scores


def _sign(shift: float) -> float:
    return -1.0 if shift < 0 else 1.0


def contrast_scores(
    baseline: HookedModel,
    kind: PartKind,
    harmful: Sequence[str],
    harmless: Sequence[str],
    batch_size: int | None = None,
) -> Scores:
    """The study's safety contrast (arXiv:2606.10154, probe 4) of every neuron or head, in all layers: the size of mean
    over harmful − mean over harmless prompts in the baseline, at the last prompt position; of layers that have such
    parts."""
    layers = sorted({part.layer for part in Parts.of(baseline).every(kind)})
    places = [Place(SITES[kind], layer) for layer in layers]
    means = [_means(baseline, places, texts, batch_size) for texts in (harmful, harmless)]
    return {
        Part(kind, place.layer, unit): value
        for place in places
        for unit, value in enumerate(contrast(means[0][place], means[1][place]).tolist())
    }


def weight_error_scores(baseline: HookedModel, cell: HookedModel, parts: Parts, kind: PartKind) -> Scores:
    """‖Ŵ − W‖ (Frobenius) over the weights of each part; the cell in the baseline's coordinates."""
    squares: dict[tuple[str, WeightAxis], Tensor] = {}
    with freed_at_once(baseline):
        for linear in parts.shapes:  # sums over rows and columns alone are kept: all errors would be a model in float64
            ours, theirs = (linear_weight(m.hf.get_submodule(linear), m.architecture) for m in (baseline, cell))
            error = (theirs.to(ours.device).double() - ours.double()).square()
            squares[linear, WeightAxis.ROWS] = error.sum(1).cpu()
            squares[linear, WeightAxis.COLUMNS] = error.sum(0).cpu()
    return {
        part: sum(p.share * squares[p.linear, p.axis][p.start : p.stop].sum().item() for p in parts.slices(part)) ** 0.5
        for part in parts.every(kind)
    }


def matched_draws(chosen: Sequence[Part], parts: Parts, draws: int, seed: int) -> list[list[Part]]:
    """Random sets with as many parts of each stratum as the chosen have, without replacement.

    A stratum: neurons, or heads, of one layer (they have one size); linears of one size; layers of one size. The
    chosen may be drawn again, as in a permutation test.

    Args:
        chosen: parts of one kind.
        parts: of the model.
        draws: how many sets.
        seed: of the draws; the same parts in another order give the same sets.
    """
    members: dict[Hashable, list[Part]] = defaultdict(list)
    for part in parts.every(chosen[0].kind):
        members[_stratum(part, parts)].append(part)
    counts = Counter(_stratum(part, parts) for part in chosen)
    generator = np.random.default_rng(seed)
    sets = []
    for _ in range(draws):
        drawn: list[Part] = []
        for stratum, candidates in members.items():
            picks = generator.choice(len(candidates), size=counts[stratum], replace=False)
            drawn += [candidates[pick] for pick in sorted(picks.tolist())]
        sets.append(drawn)
    return sets


def _stratum(part: Part, parts: Parts) -> Hashable:
    return part.layer if part.kind in SITES else parts.size(part)


def _means(
    model: HookedModel, places: Sequence[Place], texts: Sequence[str], batch_size: int | None
) -> dict[Place, Tensor]:
    """Mean activation of every unit, [unit, component], streamed in float64."""
    stats = {place: RunningStats() for place in places}

    def consume(activations: dict[str, Tensor], _: Tensor) -> None:
        for place in places:
            stats[place].add(as_units(activations[place.hook]))

    model.stream(texts, [place.hook for place in places], consume, batch_size=batch_size)
    return {place: torch.as_tensor(stats[place].mean) for place in places}
