"""How many tokens a pass may have whose activations are kept for the pass back."""

from __future__ import annotations

from interp.model import HookedModel

SMALLEST = 2**28
"""Bytes of activations that no machine lacks: small models are not cut into small batches."""
SAVED = 1.5
"""Activations that are kept, per number that goes into or comes out of a linear: what norms, rotations and the
activation function keep is half as much again."""


def differentiable_tokens(model: HookedModel) -> int:
    """So many that their activations take about half as much memory as the weights.

    Args:
        model: the one that is differentiated.
    """
    weights = sum(parameter.nbytes for parameter in model.hf.parameters())
    blocks = f"{model.architecture.blocks}."
    widths = sum(sum(p.shape) for name, p in model.hf.named_parameters() if name.startswith(blocks) and p.ndim == 2)
    return max(1, int(max(weights // 2, SMALLEST) / (SAVED * widths * model.hf.dtype.itemsize)))
