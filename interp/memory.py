"""How much may be held beside a model's weights, and giving back to the system what was freed."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.model import HookedModel

SMALLEST = 2**28
"""Bytes of activations that no machine lacks: small models are not cut into small batches."""


def spare_memory(model: HookedModel) -> int:
    """Bytes that may be held beside the weights: half as many as they have, where that is not very few."""
    return max(sum(parameter.nbytes for parameter in model.hf.parameters()) // 2, SMALLEST)


def give_back() -> None:
    """Let glibc return the pages that nothing uses; elsewhere nothing is done.

    Reading a checkpoint makes and frees a few arrays for each tensor. What they leave between the tensors that stay is
    not given back by itself: of a model of 0.54 GB it was 0.4 GB.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
