"""A quantized model in its baseline's coordinates: the same function, weights and activations that can be exchanged.

AWQ multiplies the columns of linears by factors and divides what feeds them. A row of the baseline put into such a cell
would be of another scale than its neighbours. `aligned` moves the factors back inside a `with` block, in the loaded
model: it computes what it computed, up to float rounding, and every weight and every activation inside a block is on
the baseline's scale.

`interp.pairs.scales` fits the factors of producer and consumer apart where they do not cancel (a writer's mistake).
Undoing
both would repair the mistake; here the producer is given the consumer's factor, so the mistake stays, as error of the
producer's rows. Likewise every linear that reads a rescaled norm is given the norm's factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.architectures import Architecture
from interp.experts import named_weights
from interp.model import HookedModel
from interp.pairs.scales import Scales, recovered_scales, unscaled_vector, unscaled_weight


@contextmanager
def aligned(cell: HookedModel, baseline: HookedModel) -> Iterator[Scales]:
    """Inside, the cell is in the baseline's coordinates; afterwards its parameters are what they were, bit by bit.

    Nothing is done to a cell without rescaling, or to models that were made in memory.

    Args:
        cell: changed in place while the block is open.
        baseline: what it was quantized from.
    """
    scales = Scales()
    if cell.checkpoint is not None and baseline.checkpoint is not None:
        all_scales = recovered_scales(baseline.checkpoint, cell.checkpoint)
        scales = function_preserving(all_scales, cell.architecture, cell.config)
    originals: list[tuple[Tensor, Tensor]] = []
    try:
        for name, weight in named_weights(cell.hf, cell.architecture):
            if name.rpartition(".")[0] in {*scales.inputs, *scales.outputs, *scales.norms}:
                originals.append((weight, _stored(weight)))
                weight.copy_(_undone(weight, name, scales, cell.architecture))
        yield scales
    finally:
        for weight, original in originals:
            weight.copy_(original)


def _stored(weight: Tensor) -> Tensor:
    """A copy, in float16 where that holds every number, as it does of what AWQ's kernels compute with."""
    half = weight.half()
    return half if torch.equal(half.to(weight.dtype), weight) else weight.clone()


def function_preserving(scales: Scales, architecture: Architecture, config: Any) -> Scales:
    """Scales of which producer and consumer, or norm and linears, cancel exactly."""
    inputs, outputs = dict(scales.inputs), dict(scales.outputs)
    for norm, factor in scales.norms.items():
        block, _, part = norm.rpartition(".")
        readers = (name for norm_read, names in architecture.scaled_by_norm if norm_read == part for name in names)
        inputs |= {f"{block}.{name}": factor for name in readers}
    for producer, consumer in architecture.scaled_by_linear:
        for name in scales.outputs:
            if name.endswith(f".{producer}"):
                columns = inputs[f"{name.removesuffix(producer)}{consumer}"]
                outputs[name] = _shared(columns, len(outputs[name]), config)
    return replace(scales, inputs=inputs, outputs=outputs)


def _shared(columns: Float[Tensor, " columns"], n_rows: int, config: Any) -> Float[Tensor, " rows"]:
    """The factor of each row, which the columns of all heads that read it repeat."""
    if len(columns) <= n_rows:
        return torch.cat([columns.new_ones(n_rows - len(columns)), columns])  # gates before the ups of a fused matrix
    repeats, n_heads = len(columns) // n_rows, int(config.num_key_value_heads)
    return columns.view(n_heads, repeats, -1)[:, 0].flatten()


def _undone(parameter: Tensor, name: str, scales: Scales, architecture: Architecture) -> Tensor:
    linear, _, leaf = name.rpartition(".")
    if leaf != "weight" or linear in scales.norms:
        return unscaled_vector(parameter, name, scales, architecture.norm_offset)
    weight = unscaled_weight(parameter.T if architecture.conv1d else parameter, linear, scales)
    return weight.T if architecture.conv1d else weight
