"""Where stored tensors go before they are dequantized: main memory, unless somebody asks for a device.

A packed tensor is a fraction of the dense one: copied first and dequantized there, it takes that fraction of the way
to the device, and the device's arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_DEVICE: ContextVar[torch.device | None] = ContextVar("device", default=None)


@contextmanager
def reading_to(device: torch.device | str | None) -> Iterator[None]:
    """Inside, in this thread, what readers read is put on a device and dequantized there; None for main memory."""
    token = _DEVICE.set(None if device is None else torch.device(device))
    try:
        yield
    finally:
        _DEVICE.reset(token)


def placed(stored: Tensor) -> Tensor:
    """A tensor as a file holds it, where it is wanted."""
    device = _DEVICE.get()
    return stored if device is None else stored.to(device)
