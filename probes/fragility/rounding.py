"""A model's own weights on the grid of a format: rounded to the nearest point, or up and down by chance.

The grid of a group of weights that share a scale has 2^bits points at equal distances from its smallest to its largest
weight, as in asymmetric round-to-nearest, Q4_1 or AWQ. No writer's search for better scales, no calibration: the steps
are a format's, the choice between the two points next to a weight is not.

Stochastic rounding goes up with the probability that keeps the mean, so that its error is unbiased and independent from
weight to weight. Its variance is twice that of rounding to the nearest point (step²/6 beside step²/12).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from interp.model import HookedModel
from interp.pairs.weight_path import block_linears, oriented_weight

Rounding = Callable[[Float[Tensor, "out group"]], Float[Tensor, "out group"]]
"""Weights in steps of their grid, from 0 at each row's smallest → whole steps."""


def nearest(steps: Float[Tensor, "out group"]) -> Float[Tensor, "out group"]:
    """To the nearest point of the grid."""
    return steps.round()


def stochastic(generator: torch.Generator) -> Rounding:
    """Up with the probability of the distance from the point below, else down.

    Args:
        generator: of the draw, on the CPU, so that every device, or several, draw the same.
    """

    def choose(steps: Float[Tensor, "out group"]) -> Float[Tensor, "out group"]:
        below = steps.floor()
        uniform = torch.rand(steps.shape, generator=generator).to(steps.device)
        return below + (uniform < steps - below)

    return choose


def on_grid(weight: Float[Tensor, "out in"], bits: int, group: int, choose: Rounding) -> Float[Tensor, "out in"]:
    """A matrix whose every weight is a point of its group's grid, in the matrix's dtype.

    Args:
        weight: of a linear.
        bits: the grid has 2^bits points.
        group: weights of a row that share a grid; the last group of a row may be smaller. −1 for whole rows.
        choose: which of the points next to a weight.
    """
    size = group if group > 0 else weight.shape[1]
    parts = [_group_on_grid(part.float(), 2**bits - 1, choose) for part in weight.split(size, dim=1)]
    return torch.cat(parts, dim=1).to(weight.dtype)


def _group_on_grid(part: Float[Tensor, "out group"], n_steps: int, choose: Rounding) -> Float[Tensor, "out group"]:
    low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
    step = (high - low) / n_steps
    in_steps = torch.where(step > 0, (part - low) / step, 0.0).clamp(0, n_steps)
    return low + choose(in_steps) * step


@contextmanager
def rounded_to(model: HookedModel, bits: int, group: int, choose: Rounding) -> Iterator[None]:
    """The weights of a model's block linears are rounded inside, in place, and afterwards what they were, bit by bit.

    Memory: one copy of these weights.

    Args:
        model: must not be used elsewhere inside the block.
        bits: see `on_grid`.
        group: see `on_grid`.
        choose: `nearest`, or `stochastic(generator)`.

    Example:
        >>> with rounded_to(model, 4, 128, nearest):
        ...     model.logits(prompts)
    """
    weights = [oriented_weight(model, linear) for linear in block_linears(model)]
    originals = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            weight.copy_(on_grid(weight, bits, group, choose))
        yield
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original)
