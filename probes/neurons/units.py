"""What the safety-neuron probe takes from the models: the baseline's units, and a cell's error on each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import NotFinite
from interp.model import HookedModel
from interp.pairs.scales import recovered_scales
from interp.running_stats import RunningStats
from probes.harness.results import Result
from probes.neurons import metrics
from probes.neurons.settings import Site
from probes.neurons.sites import Place, as_units, unscaled


@dataclass(frozen=True)
class Units:
    """The units of one place, from the baseline alone.

    Attributes:
        contrast: ‖mean over harmful − mean over harmless prompts‖.
        spread: sample standard deviation over harmless prompts.
        magnitude: mean size over harmless prompts.
        safety: which units have the largest contrast.
        matched: random sets with the magnitudes of the safety units.
        reference: activations on the prompts on which errors are measured.
    """

    contrast: Float[Tensor, " unit"]
    spread: Float[Tensor, " unit"]
    magnitude: Float[Tensor, " unit"]
    safety: Bool[Tensor, " unit"]
    matched: Bool[Tensor, "draw unit"]
    reference: Float[Tensor, "prompt unit component"]


@dataclass(repr=False)
class NeuronResult(Result):
    """The probe's result, with what it was computed from.

    Attributes:
        units: the baseline's units by place.
        errors: cell → place → error of every unit, in activation units.
    """

    units: Mapping[Place, Units] = field(default_factory=dict)
    errors: Mapping[str, Mapping[Place, Float[Tensor, " unit"]]] = field(default_factory=dict)


def baseline_units(
    model: HookedModel,
    places: Sequence[Place],
    harmful: Sequence[str],
    harmless: Sequence[str],
    error_prompts: Sequence[str],
    draws: int,
    seed: int,
    batch_size: int | None = None,
) -> dict[Place, Units]:
    """Choose the safety units of every place and their matched random sets.

    Args:
        model: the baseline.
        places: where.
        harmful: rendered prompts, as are the next two.
        harmless: the other side of the contrast.
        error_prompts: on which errors will be measured.
        draws: random sets per place.
        seed: of the random sets; a place's sets depend on nothing else.
        batch_size: prompts per forward pass.
    """
    harmful_means, _ = _statistics(model, places, harmful, batch_size)
    harmless_values, harmless_sizes = _statistics(model, places, harmless, batch_size)
    reference = _activations(model, places, error_prompts, batch_size)
    units = {}
    for place in places:
        contrast = metrics.contrast(harmful_means[place].mean, harmless_values[place].mean)
        safety = metrics.largest(contrast, metrics.n_safety(len(contrast)))
        magnitude = harmless_sizes[place].mean
        units[place] = Units(
            contrast,
            metrics.spread(harmless_values[place].variance()),
            magnitude,
            safety,
            metrics.matched_sets(safety, magnitude, draws, _generator(seed, place)),
            reference[place],
        )
    return units


def unit_errors(
    cell: HookedModel,
    baseline: HookedModel,
    units: Mapping[Place, Units],
    error_prompts: Sequence[str],
    batch_size: int | None = None,
) -> dict[Place, Float[Tensor, " unit"]]:
    """Mean over prompts of ‖h_quant − h_base‖ for every unit, AWQ's rescaling of the cell undone.

    Raises:
        NotFinite: the cell computes NaN or infinity.
    """
    scales: Mapping[str, Tensor] = {}
    if cell.checkpoint is not None and baseline.checkpoint is not None:
        scales = recovered_scales(baseline.checkpoint, cell.checkpoint).outputs
    activations = _activations(cell, list(units), error_prompts, batch_size)
    return {
        place: metrics.activation_error(
            unscaled(activations[place], place, cell.architecture, scales), units[place].reference
        )
        for place in units
    }


def _statistics(
    model: HookedModel, places: Sequence[Place], texts: Sequence[str], batch_size: int | None
) -> tuple[dict[Place, RunningStats], dict[Place, RunningStats]]:
    """Streamed statistics of the activations, [unit, component], and of their sizes, [unit]."""
    values = {place: RunningStats() for place in places}
    sizes = {place: RunningStats() for place in places}

    def consume(activations: dict[str, Tensor], _: Tensor) -> None:
        for place in places:
            units = as_units(activations[place.hook])
            values[place].add(units)
            sizes[place].add(torch.linalg.vector_norm(units, dim=-1))

    model.stream(texts, [place.hook for place in places], consume, batch_size=batch_size)
    return values, sizes


def _activations(
    model: HookedModel, places: Sequence[Place], texts: Sequence[str], batch_size: int | None
) -> dict[Place, Float[Tensor, "prompt unit component"]]:
    """The units of every place on a few prompts, in the order of the prompts."""
    parts: list[tuple[dict[str, Tensor], Tensor]] = []
    model.stream(texts, [place.hook for place in places], lambda *part: parts.append(part), batch_size=batch_size)
    order = torch.cat([indices for _, indices in parts]).argsort()
    collected = {p: as_units(torch.cat([acts[p.hook] for acts, _ in parts])[order]) for p in places}
    for place, units in collected.items():
        if not units.isfinite().all():
            raise NotFinite(f"{place.hook} holds values that are not finite", do="Measure with --dtype float32")
    return collected


def _generator(seed: int, place: Place) -> torch.Generator:
    """Independent random numbers for every place."""
    sequence = np.random.SeedSequence((seed, list(Site).index(place.site), place.layer))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
