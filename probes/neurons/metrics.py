"""The maths of the safety-neuron probe.

A unit is a dimension, a neuron or a head; a head has d_head components, the others one. Tensors are
[..., unit, component]; sizes over components are Euclidean, which for one component is the absolute value.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SAFETY_PERCENT = 5
"""Share of a layer's units that are called its safety units (arXiv:2606.10154)."""

STRATUM = 10
"""Units of neighbouring baseline magnitude among which a matched random set exchanges its members."""


def contrast(
    mean_harmful: Float[Tensor, "unit component"], mean_harmless: Float[Tensor, "unit component"]
) -> Float[Tensor, " unit"]:
    """‖mean over harmful prompts − mean over harmless prompts‖: [unit, component] → [unit]."""
    return torch.linalg.vector_norm(mean_harmful - mean_harmless, dim=-1)


def spread(variance: Float[Tensor, "unit component"]) -> Float[Tensor, " unit"]:
    """Standard deviation of a unit, √(Σ variance over components): [unit, component] → [unit]."""
    return variance.sum(-1).sqrt()


def activation_error(
    quantized: Float[Tensor, "prompt unit component"], baseline: Float[Tensor, "prompt unit component"]
) -> Float[Tensor, " unit"]:
    """Mean over prompts of ‖h_quant − h_base‖: [prompt, unit, component] → [unit], in float64."""
    return torch.linalg.vector_norm(quantized.double() - baseline.double(), dim=-1).mean(0)


def n_safety(n_units: int) -> int:
    """How many units are safety units: floor(5 % · n_units), at least one."""
    return max(1, n_units * SAFETY_PERCENT // 100)


def largest(values: Float[Tensor, " unit"], count: int) -> Bool[Tensor, " unit"]:
    """Mask of the `count` largest values; of equal ones the first."""
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.argsort(descending=True, stable=True)[:count]] = True
    return mask


def scale_normalized(error: Float[Tensor, " unit"], scale: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Error in baseline standard deviations; NaN for a unit that does not vary in the baseline."""
    return torch.where(scale > 0, error / scale, torch.nan)


def error_ratio(error: Float[Tensor, " unit"], chosen: Bool[Tensor, "*set unit"]) -> Float[Tensor, "*set"]:
    """Mean error over the chosen units / mean error over the rest, per set: [unit], [*set, unit] → [*set].

    Units whose error is NaN belong to neither side. NaN where a side is empty or the rest has no error.
    """
    defined = error.isfinite()
    inside, outside = (chosen & defined).double(), (~chosen & defined).double()
    values = error.double().nan_to_num(0.0)
    rest = (outside @ values) / outside.sum(-1)
    return torch.where(rest > 0, (inside @ values) / inside.sum(-1) / rest, torch.nan)


def matched_sets(
    chosen: Bool[Tensor, " unit"], magnitude: Float[Tensor, " unit"], draws: int, generator: torch.Generator
) -> Bool[Tensor, "draw unit"]:
    """Random sets of as many units with the magnitudes of the chosen: [unit] → [draw, unit].

    Units are ranked by magnitude and cut into strata of `STRATUM`; each draw takes from a stratum as many units as the
    chosen have in it. Exchanging labels within strata is an exact permutation test of "being chosen tells nothing
    beyond magnitude". The chosen may be drawn again, so a stratum which they fill has no freedom:
    that weakens the test rather than biasing it.
    """
    sets = torch.zeros(draws, len(chosen), dtype=torch.bool)
    for stratum in magnitude.argsort(stable=True).tensor_split(max(1, len(chosen) // STRATUM)):
        count = int(chosen[stratum].sum())
        if count:
            picks = torch.rand(draws, len(stratum), generator=generator).argsort(dim=1)[:, :count]
            sets.scatter_(1, stratum[picks], True)
    return sets
