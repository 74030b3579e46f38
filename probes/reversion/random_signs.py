"""The null of a direction in quantization's error: the same errors, each with a random sign."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from interp.model import HookedModel


def signed(size: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of the same sizes with random signs, drawn on the CPU so that every device draws the same."""
    signs = torch.randint(0, 2, size.shape, generator=generator, dtype=torch.int8)
    return torch.where(signs.to(size.device).bool(), size, -size)


@contextmanager
def random_signs(cell: HookedModel, baseline: HookedModel, generator: torch.Generator) -> Iterator[None]:
    """Inside, every error of the cell's parameters has its size and a random sign; afterwards all is as it was.

    Args:
        cell: in the baseline's coordinates (`interp.pairs.alignment.aligned`).
        baseline: what it was quantized from.
        generator: of the signs, on the CPU.
    """
    original = {name: parameter.detach().clone() for name, parameter in cell.hf.named_parameters()}
    start = dict(baseline.hf.named_parameters())
    try:
        with torch.no_grad():
            for name, parameter in cell.hf.named_parameters():
                if name in start:  # an unembedding that one of the two ties to its embedding is left as it is
                    before = start[name].to(parameter.device)
                    parameter.copy_(before + signed(parameter - before, generator))
        yield
    finally:
        with torch.no_grad():
            for name, parameter in cell.hf.named_parameters():
                parameter.copy_(original[name])
