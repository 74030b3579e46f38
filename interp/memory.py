"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys


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
