"""The baseline of a pair, opened as a model: in memory, or streamed where the pair would not fit."""

from __future__ import annotations

from pathlib import Path

import torch

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.cli import log
from interp.model import HookedModel
from interp.opening import load, usable_device, usual_dtype
from interp.streaming.memory import plan


def open_model(
    path: str | Path | Checkpoint, dtype: torch.dtype | None, device: str | None, stream: bool | None
) -> HookedModel:
    """Open a baseline; say what it and a cell will take before anything is loaded, if that decides something.

    Args:
        path: of the baseline, or its checkpoint.
        dtype: as `interp.load`.
        device: as `interp.load`.
        stream: whether it and its cells are streamed; None where they would not fit into memory.

    Raises:
        InputError: as `interp.load`.
    """
    if stream is False:
        return load(path, dtype=dtype, device=device)
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    target = usable_device(device)
    weights = plan(checkpoint, dtype or usual_dtype(checkpoint, target), target, stream)
    if weights.stream:
        log.print(str(weights), markup=False, highlight=False, soft_wrap=True)
    return load(checkpoint, dtype=dtype, device=device, stream=weights.stream)
