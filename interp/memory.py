"""How much may be held beside a model's weights, and giving back to the system what was freed."""

from __future__ import annotations

import atexit
import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.model import HookedModel

SMALLEST = 2**28
"""Bytes of activations that no machine lacks: small models are not cut into small batches."""

_MMAP_THRESHOLD = -3
"""glibc's name for the size from which an array is mapped on its own."""
_APART, _USUAL = 2**20, 2**25
"""Bytes: a megabyte, and what glibc comes to by itself where large arrays are freed."""


def spare_memory(model: HookedModel) -> int:
    """Bytes that may be held beside the weights: half as many as are held of them, where that is not very few."""
    streamed = model.streamed
    held = sum(weight.nbytes for weight in model.hf.parameters()) if streamed is None else streamed.slot.most_bytes
    return max(held // 2, SMALLEST)


def settle_heap() -> None:
    """Let the collector of cycles pass over what exists now, which are modules and stay: a tenth of a command's time.

    It is for commands, before they load a model; what a library's caller has may still become garbage.
    """
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)  # at its end an extension (Triton's) would report what it still holds as leaks
    gc.freeze()


@contextmanager
def settled_heap() -> Iterator[None]:
    """Inside, what existed before is not searched for garbage; after, everything is, also what a command settled."""
    gc.collect()  # what is garbage now must not be kept
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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


@contextmanager
def freed_at_once(model: HookedModel) -> Iterator[None]:
    """Inside, arrays of a megabyte and more go back to the system as soon as nothing uses them.

    By itself glibc keeps arrays of up to 32 MB in heaps, one for each thread, whose holes stay with the process.
    Mapping each on its own costs time, so nothing is done for models that are small beside what any machine has, and
    nothing where there is no glibc.

    Args:
        model: the one that is worked on.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if set_option is None or spare_memory(model) <= SMALLEST:
        yield
        return
    set_option(_MMAP_THRESHOLD, _APART)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, _USUAL)
        give_back()
