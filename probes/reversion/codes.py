"""The share of a cell's weights that have the code of the unaligned weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from interp.checkpoint import Checkpoint
from probes.reversion.projection import ALL, WEIGHTS, Observed, Place
from probes.reversion.random_signs import signed

CODES = "codes"


@dataclass(frozen=True)
class SameCodes:
    """How many weights of one linear have the code that the unaligned weight would have.

    Attributes:
        same: so many.
        n: of so many.
        random: the same for imaginary unaligned weights: as far from the baseline's as the real ones, with random
            signs, a number per draw.
    """

    same: int
    n: int
    random: tuple[int, ...]


def same_codes(
    cell: Checkpoint, baseline: Observed, before: Observed, draws: int, seed: int
) -> Mapping[Place, SameCodes] | str:
    """The codes of each linear that alignment moved, and of these together; or why they cannot be worked out.

    Args:
        cell: whose grid both are rounded to.
        baseline: the aligned weights.
        before: the unaligned weights.
        draws: imaginary unaligned weights.
        seed: of their signs.
    """
    counted = {}
    for place, counts in _by_linear(cell, baseline, before, draws, seed):
        if counts is None:
            return f"{cell.format} ({_kind(cell)}): the codes of another weight cannot be worked out without its writer"
        counted[place] = counts
    if not counted:
        return "alignment moved no linear"
    parts = list(counted.values())
    together = SameCodes(
        sum(part.same for part in parts),
        sum(part.n for part in parts),
        tuple(map(sum, zip(*(part.random for part in parts), strict=True))),
    )
    return {Place(CODES, ALL): together, **counted}


def _by_linear(
    cell: Checkpoint, baseline: Observed, before: Observed, draws: int, seed: int
) -> Iterator[tuple[Place, SameCodes | None]]:
    generator = torch.Generator().manual_seed(seed)
    for place in baseline:
        if place.of != WEIGHTS or torch.equal(baseline[place], before[place]):
            continue
        own = cell.codes(place.where, cell.weight(place.where))
        if own is None:
            yield Place(CODES, place.where), None
            return
        start, way = (
            tensor.float().cpu().reshape(own.shape) for tensor in (baseline[place], before[place] - baseline[place])
        )
        counts = []
        for step in (way, *(signed(way, generator) for _ in range(draws))):
            codes = cell.codes(place.where, start + step)
            assert codes is not None
            counts.append(int((codes == own).sum()))
        yield Place(CODES, place.where), SameCodes(counts[0], own.numel(), tuple(counts[1:]))


def _kind(cell: Checkpoint) -> str:
    types = cell.quantization.get("types", {})
    return ", ".join(types) or f"{cell.bits_per_weight():.2f} bits"
