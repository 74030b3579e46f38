"""The part of quantization's error that points back along the way that alignment took a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from interp.model import HookedModel
from interp.pairs.weight_path import block_linears, oriented_weight
from probes.stats.bootstrap import percentile_interval, resampled_means
from probes.stats.intervals import Estimate

WEIGHTS, STREAM, LOGITS = "weights", "activations", "logits"
ALL = "all"
"""The linears of all blocks together."""


class Place(NamedTuple):
    """What was looked at.

    Attributes:
        of: "weights", "activations" or "logits".
        where: the linear, the hook point, or "all".
        prompts: "harmful" or "harmless"; "" for weights.
    """

    of: str
    where: str
    prompts: str = ""


Observed = Mapping[Place, Float[Tensor, "_ _"]]
"""Vectors of one model: a row per prompt, or one row for a whole weight."""


@dataclass(frozen=True)
class Projection:
    """(Ŵ − W) projected on (W_before − W): 1 where quantization undid alignment, 0 where its error is at right angles.

    Attributes:
        products: inner product of the two differences, of each prompt or of the whole weight.
        squares: squared length of the second, which alignment moved.
        n: prompts, or weights.
    """

    products: Float64[np.ndarray, " rows"]
    squares: Float64[np.ndarray, " rows"]
    n: int

    @property
    def value(self) -> float:
        """The projection of all prompts together; NaN where alignment moved nothing."""
        moved = float(self.squares.sum())
        return float(self.products.sum()) / moved if moved else float("nan")

    def estimate(self) -> Estimate:
        """With a bootstrap interval over prompts; a weight has none, since it is no sample."""
        if len(self.products) < 2 or not self.squares.sum():
            return Estimate(self.value, n=self.n)
        products, squares = resampled_means(np.stack([self.products, self.squares])).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return percentile_interval(self.value, products / squares, self.n)


def observe(model: HookedModel, texts: Mapping[str, list[str]], batch_size: int | None = None) -> Observed:
    """The weights of a model, not copied, and what it computes at the last token of each prompt.

    Args:
        model: as it is now.
        texts: "harmful" and "harmless" → rendered prompts.
        batch_size: prompts per forward pass.
    """
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)]
    observed: dict[Place, Tensor] = {
        Place(WEIGHTS, name): oriented_weight(model, name).reshape(1, -1) for name in block_linears(model)
    }
    for side, prompts in texts.items():
        logits, cache = model.run_with_cache(prompts, hooks, position=-1, batch_size=batch_size)
        assert logits is not None
        observed |= {Place(STREAM, hook, side): cache[hook] for hook in hooks}
        observed[Place(LOGITS, ALL, side)] = logits
    return observed


def projections(cell: Observed, baseline: Observed, before: Observed) -> dict[Place, Projection]:
    """The projections of everything that was observed, and of the weights of all linears together.

    Args:
        cell: the quantized model.
        baseline: what it was quantized from.
        before: what that was aligned from.
    """
    single = {place: _project(place, cell[place], baseline[place], before[place]) for place in baseline}
    weights = [projection for place, projection in single.items() if place.of == WEIGHTS]
    together = Projection(
        sum((each.products for each in weights), np.zeros(1)),
        sum((each.squares for each in weights), np.zeros(1)),
        sum(each.n for each in weights),
    )
    return {Place(WEIGHTS, ALL): together, **single}


def _project(
    place: Place, cell: Float[Tensor, "n _"], start: Float[Tensor, "n _"], end: Float[Tensor, "n _"]
) -> Projection:
    if place.of == LOGITS:
        cell, start, end = _comparable(cell, start, end)
    origin = start.double()
    way = end.double() - origin
    products = torch.linalg.vecdot(cell.double() - origin, way)
    n = start.numel() if place.of == WEIGHTS else len(start)
    return Projection(products.cpu().numpy(), way.square().sum(1).cpu().numpy(), n)


def _comparable(*logits: Float[Tensor, "n _"]) -> list[Float[Tensor, "n vocab"]]:
    """Of the tokens that all models have (who fine-tunes may add some), and without their mean, which means nothing."""
    known = min(each.shape[1] for each in logits)
    return [each[:, :known] - each[:, :known].mean(1, keepdim=True) for each in logits]
