"""What a pass back may hold: activations of some tokens, some gradients, and a part of what is made of a matrix."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from interp.memory import spare_memory
from interp.model import HookedModel
from interp.streaming.states import LIMIT

BLOCK = 2**22
"""Numbers of a matrix that are worked on at a time."""
SAVED = 1.5
"""Activations that are kept, per number that goes into or comes out of a linear: what norms, rotations and the
activation function keep is half as much again."""


def differentiable_tokens(model: HookedModel) -> int:
    """So many that their activations take about half as much memory as the weights.

    Of a streamed model what enters every block is kept, and of one block all of it: so many that this takes as much
    memory as residual streams that wait.

    Args:
        model: the one that is differentiated.
    """
    blocks = f"{model.architecture.blocks}."
    widths = sum(sum(p.shape) for name, p in model.hf.named_parameters() if name.startswith(blocks) and p.ndim == 2)
    if model.streamed is None:
        return max(1, int(spare_memory(model) / (SAVED * widths * model.hf.dtype.itemsize)))
    numbers = SAVED * widths / model.n_layers + model.config.hidden_size * model.n_layers
    return max(1, int(LIMIT / (numbers * model.hf.dtype.itemsize)))


def row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Some rows at a time, so that what is made of them in float64 stays small: an unembedding has 28 million numbers.

    Args:
        matrix: with a first dimension.
    """
    size = max(1, BLOCK // max(1, matrix[:1].numel()))
    for start in range(0, len(matrix), size):
        yield slice(start, start + size)
