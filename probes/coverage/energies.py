"""How large the outputs of linears are, and their errors, on tokens of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from interp.batching import Batch, batches
from interp.model import HookedModel

VARIANTS = ("output", "error", "random", "rounded")
"""What the energies of a linear are of, in this order."""


@dataclass(frozen=True)
class LinearError:
    """A linear's weight and the errors whose outputs are compared.

    Attributes:
        weight: the baseline's, in float32: squares of small errors, and sums of large ones, are no float16.
        error: cell − baseline.
        rounded: of plain rounding.
    """

    weight: Float[Tensor, "out in"]
    error: Float[Tensor, "out in"]
    rounded: Float[Tensor, "out in"]

    def energies(self, inputs: Float[Tensor, "text pos in"]) -> Float[Tensor, "variant text"]:
        """Squared lengths of the outputs, summed over the positions; "random" is exactly what errors of the same sizes
        with random signs give on average: products of different inputs cancel. In the dtype of the weights."""
        linear = torch.nn.functional.linear
        outputs = [linear(inputs, weight).square() for weight in (self.weight, self.error, self.rounded)]
        random = inputs.square() * self.error.square().sum(0)
        output, error, rounded = (each.sum(2).double().sum(1) for each in outputs)
        return torch.stack([output, error, random.sum(2).double().sum(1), rounded])


Energies = Float64[Tensor, "linear variant text"]


def energies(
    baseline: HookedModel,
    errors: Mapping[str, LinearError],
    texts: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[bool]],
    batch_size: int | None = None,
) -> Energies:
    """The energies of every linear, on the baseline's own inputs to it.

    Args:
        baseline: what runs.
        errors: linear → its errors.
        texts: token ids of rendered prompts, or of calibration texts.
        chosen: for each text which of its tokens count.
        batch_size: texts per forward pass.
    """
    sums = torch.zeros(len(errors), len(VARIANTS), len(texts), dtype=torch.float64)
    for batch in batches(texts, -1, batch_size, baseline.device):
        mask = _mask(batch, chosen)
        with ExitStack() as hooked, torch.no_grad():
            for row, (name, error) in enumerate(errors.items()):
                hook = _adding(error, mask, sums[row], batch.indices)
                hooked.callback(baseline.hf.get_submodule(name).register_forward_hook(hook).remove)
            baseline.hf.base_model(**batch.inputs, use_cache=False)
    return sums


def _mask(batch: Batch, chosen: Sequence[Sequence[bool]]) -> Bool[Tensor, "text pos"]:
    mask = torch.zeros_like(batch.inputs["input_ids"], dtype=torch.bool)
    for row, text in enumerate(batch.indices.tolist()):
        mask[row, : len(chosen[text])] = torch.tensor(chosen[text])
    return mask


def _adding(
    error: LinearError, mask: Bool[Tensor, "text pos"], sums: Float64[Tensor, "variant text"], indices: Tensor
) -> Callable[..., None]:
    def add(_: Any, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        counted = inputs[0].to(error.weight) * mask[..., None].to(error.weight)
        sums[:, indices] = error.energies(counted).cpu()

    return add
