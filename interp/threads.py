"""How many threads a command computes with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from interp.model import HookedModel

SMALL = 2**18
"""Weights. Where no linear of a model's blocks has as many, a second thread waits longer than it computes, and beside
other work on the same cores it makes everything several times slower."""


def fitting_threads(model: HookedModel) -> int | None:
    """1 for a small model on the CPU, unless `OMP_NUM_THREADS` is set; None for what PyTorch takes by itself."""
    blocks = model.hf.get_submodule(model.architecture.blocks)
    largest = max((weight.numel() for weight in blocks.parameters()), default=0)
    small = largest < SMALL and model.device.type == "cpu"
    return 1 if small and "OMP_NUM_THREADS" not in os.environ else None


def fit_threads(model: HookedModel) -> None:
    """Let the whole process compute with as many threads as fit a model.

    It is for commands: as a library, nothing here changes how many threads its caller computes with.
    """
    if threads := fitting_threads(model):
        torch.set_num_threads(threads)
