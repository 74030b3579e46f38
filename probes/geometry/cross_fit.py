"""Subspaces fitted on one half of a baseline's prompts, and a cell's errors on the other half inside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from probes.geometry.subspaces import Spectrum, energy_inside, isotropic, refusal_subspace
from probes.stats import intervals
from probes.stats.bootstrap import percentile_interval, resampled_means
from probes.stats.intervals import Estimate, mean_interval
from probes.stats.random_draws import draw_p

SIDES = ("harmful", "harmless")
STRICT = ("covariance", "matched")
NULLS = ("random", *STRICT)
"""Random subspaces: without a preference; where the activations vary; and where these vary as much inside."""
NO_ERROR = "the cell computes exactly what the baseline does: no error to look at"
KEPT_ELEMENTS = 2**20
"""The most elements of one null of one half: 8 MiB."""
LayerActivations = Mapping[str, Float[Tensor, "_ d_model"]]
"""Side → activations of one layer, float64."""


@dataclass(frozen=True)
class Nulls:
    """Random subspaces that a refusal subspace is compared with.

    Attributes:
        bases: for each of `NULLS`, [draws, d_model, rank].
        held: for each of `STRICT`, the share of the energy of `Half.varying` inside, the mean over draws.
    """

    bases: dict[str, Float[Tensor, "draws d_model rank"]]
    held: dict[str, float]


@dataclass(frozen=True)
class Half:
    """What was fitted on one half of the baseline's prompts, and the other half, on which it is tested.

    Attributes:
        refusal: the refusal subspace, [d_model, rank].
        gap: distance of the harmful from the harmless mean.
        spectrum: of the fitted activations, both sides together, around their mean.
        varying: the tested activations, both sides together, around the mean of the fitted ones.
        power: of the spectrum, with which random subspaces hold as much of `varying` as the refusal subspace does.
        tested: side → the prompts of the other half.
    """

    refusal: Float[Tensor, "d_model rank"]
    gap: float
    spectrum: Spectrum
    varying: Float[Tensor, "prompt d_model"]
    power: float
    tested: Mapping[str, Int[Tensor, _]]
    _kept: dict[tuple[int, int], Nulls] = field(default_factory=dict, init=False, repr=False, compare=False)

    def nulls(self, draws: int, seed: int) -> Nulls:
        """Random subspaces of each of `NULLS`; the same ones for all cells, kept for the next one where they are small.

        Both halves of a layer are given one seed: the refusal subspaces of the halves are nearly one subspace, so a
        draw has to be nearly one, too. Drawn apart, two halves would average two draws, and the null be too narrow.
        """
        if (draws, seed) in self._kept:
            return self._kept[draws, seed]
        nulls = self._drawn(draws, seed)
        if draws * self.refusal.numel() <= KEPT_ELEMENTS:
            self._kept[draws, seed] = nulls
        return nulls

    def _drawn(self, draws: int, seed: int) -> Nulls:
        generator = torch.Generator().manual_seed(seed)
        d_model, rank = self.refusal.shape
        bases = {
            "random": isotropic(d_model, rank, draws, generator),
            "covariance": self.spectrum.random(rank, draws, generator),
            "matched": self.spectrum.random(rank, draws, generator, self.power),
        }
        return Nulls(bases, {name: _share(self.varying, bases[name]) for name in STRICT})


@dataclass(frozen=True)
class Layer:
    """The baseline at one layer.

    Attributes:
        refusal: fitted on all prompts, for angles to a cell's.
        halves: the two ways round.
    """

    refusal: Float[Tensor, "d_model rank"]
    halves: tuple[Half, Half]


def random_halves(n: Mapping[str, int], seed: int) -> list[dict[str, Int[Tensor, _]]]:
    """Two halves of the lines of the prompt sets, the prompts of a pair always in the same one.

    Random, because sets are often sorted: every other line of the built-in ones has only half of the categories.
    """
    order = torch.randperm(min(n.values()), generator=torch.Generator().manual_seed(seed))
    middle = len(order) // 2
    halves = []
    for which, paired in enumerate((order[:middle], order[middle:])):
        # What has no pair goes to the halves in turns, after the pairs.
        halves.append(
            {side: torch.cat([paired.sort().values, torch.arange(len(order), n[side])[which::2]]) for side in n}
        )
    return halves


def fit(
    activations: LayerActivations, halves: Sequence[Mapping[str, Int[Tensor, _]]], components: int, seed: int
) -> Layer | str:
    """The baseline at one layer, or why nothing can be fitted there.

    Args:
        activations: of the baseline.
        halves: of `random_halves`.
        components: of the refusal subspace beside the difference of means.
        seed: of the draws that find `Half.power`.
    """
    try:
        whole = refusal_subspace(activations["harmful"], activations["harmless"], components)
        first = _half(activations, halves[0], halves[1], components, seed)
        second = _half(activations, halves[1], halves[0], components, seed)
    except InputError as error:
        return str(error)
    return Layer(whole, (first, second))


def _half(
    activations: LayerActivations,
    fitted: Mapping[str, Int[Tensor, _]],
    tested: Mapping[str, Int[Tensor, _]],
    components: int,
    seed: int,
) -> Half:
    harmful, harmless = (activations[side][fitted[side]] for side in SIDES)
    refusal = refusal_subspace(harmful, harmless, components)
    gap = float(torch.linalg.vector_norm(harmful.mean(0) - harmless.mean(0)))
    together = torch.cat([harmful, harmless])
    spectrum = Spectrum.of(together - together.mean(0))
    varying = torch.cat([activations[side][tested[side]] for side in SIDES]) - together.mean(0)
    share = _share(varying, refusal)
    generator = torch.Generator().manual_seed(seed)
    power = spectrum.matching_power(refusal.shape[1], share, varying, generator)
    return Half(refusal, gap, spectrum, varying, power, tested)


def _share(vectors: Float[Tensor, "n d_model"], basis: Float[Tensor, "*draws d_model rank"]) -> float:
    """The share of the vectors' energy inside a subspace; the mean over many."""
    return float((energy_inside(vectors, basis).sum(-1) / vectors.square().sum()).mean())


@dataclass
class _Energies:
    """The energies of one side's errors: per prompt, and summed inside each null's draws."""

    inside: list[Tensor] = field(default_factory=list)
    total: list[Tensor] = field(default_factory=list)
    along: list[Tensor] = field(default_factory=list)
    top: float = 0.0
    nulls: dict[str, Tensor] = field(default_factory=dict)

    def add(self, errors: Float[Tensor, "prompt d_model"], half: Half, nulls: Mapping[str, Tensor]) -> None:
        self.inside.append(energy_inside(errors, half.refusal))
        self.total.append(errors.square().sum(1))
        self.along.append(errors @ half.refusal[:, 0] / half.gap)
        self.top += float(energy_inside(errors, half.spectrum.top(half.refusal.shape[1])).sum())
        for name, bases in nulls.items():
            self.nulls[name] = self.nulls.get(name, 0.0) + energy_inside(errors, bases).sum(-1)


def share_rows(
    before: LayerActivations, after: LayerActivations, layer: Layer | str, draws: int, seed: int
) -> Iterator[dict[str, Any]]:
    """One row per side: the columns of `probes.geometry` from `prompts` on.

    Args:
        before: the baseline's activations.
        after: the cell's.
        layer: of `fit`.
        draws: random subspaces per null and half.
        seed: of these.
    """
    if isinstance(layer, str):
        yield from ({"prompts": side, "n": len(before[side]), "reason": layer} for side in SIDES)
        return
    energies = {side: _Energies() for side in SIDES}
    held: list[dict[str, float]] = []
    for half in layer.halves:
        nulls = half.nulls(draws, seed)
        held.append({"": _share(half.varying, half.refusal)} | nulls.held)
        for side, tested in half.tested.items():
            energies[side].add(after[side][tested] - before[side][tested], half, nulls.bases)
    activation = {f"activation_{name}".strip("_"): sum(h[name] for h in held) / len(held) for name in held[0]}
    for side, side_energies in energies.items():
        energy = float(before[side].square().sum())
        sizes = {"prompts": side, "n": len(before[side]), "rank": layer.refusal.shape[1]}
        yield sizes | _numbers(side_energies, energy) | activation


def _numbers(side_energies: _Energies, energy: float) -> dict[str, Any]:
    inside, total = torch.cat(side_energies.inside).numpy(), torch.cat(side_energies.total).numpy()
    error = total.sum()
    if error == 0:
        return {"relative_error": 0.0, "reason": NO_ERROR}
    share = inside.sum() / error
    resampled = resampled_means(np.stack([inside, total]))
    against: dict[str, float] = {}
    for name, null in side_energies.nulls.items():
        against |= intervals.interval_columns(name, _range(null / error))
        against[f"p_{name}"] = draw_p(float(share), null / error)
    return {
        "relative_error": float(np.sqrt(error / energy)) if energy else nan,
        **intervals.interval_columns("share", percentile_interval(share, np.divide(*resampled.T))),
        **against,
        "top": side_energies.top / error,
        **intervals.interval_columns("along", mean_interval(torch.cat(side_energies.along))),
        "reason": "",
    }


def _range(null: Float[Tensor, " draw"]) -> Estimate:
    """Mean and central 95 % of a null."""
    return percentile_interval(float(null.mean()), null.numpy())
