"""`load`: a checkpoint of any format → a hooked model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.architectures import Architecture, architecture
from interp.errors import InputError
from interp.inferred import require_sums
from interp.loading import device_of, empty_model, fill, surroundings
from interp.memory import give_back
from interp.model import HookedModel

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint
    from interp.streaming.streamed import Streamed


def load(
    path: str | Path | Checkpoint,
    like: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    stream: bool = False,
) -> HookedModel:
    """Open a checkpoint of any format as a hooked model with dense weights.

    Args:
        path: a checkpoint directory, a .gguf file, or a hub id; nothing is downloaded for a path that exists. Or a
            checkpoint that is open.
        like: the baseline that a GGUF takes its config and tokenizer from.
        dtype: of every parameter. Default: the checkpoint's own on an accelerator; float32 on the CPU, which holds
            every float16 and bfloat16 weight exactly and where half-precision sums are slower and rounded more
            coarsely. Give both cells of a pair the same one.
        device: default the CPU.
        device_map: spread over devices by accelerate ("auto", or {module: device}) instead of `device`.
        stream: hold one block of the weights at a time and read them from the file when they are needed: all passes
            of a call go through the model together, for one read of it. Numbers are the same. Not for gradients, and
            slow for generation, which reads the weights once a token.

    Raises:
        InputError: not a checkpoint that can be read; a tensor missing, unexpected or of the wrong shape; an
            architecture without a row in the table whose numbers are not what its modules' names suggest
            (`interp.inferred`).

    Example:
        >>> baseline = load("path/to/model")
        >>> cell = load("path/to/model-Q4_K_M.gguf", like="path/to/model", dtype=baseline.hf.dtype)
    """
    from interp.checkpoint import Checkpoint, open_checkpoint

    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    beside = surroundings(checkpoint, like)
    target = usable_device(device)
    if dtype is None:
        dtype = checkpoint.compute_dtype if device_map is not None else usual_dtype(checkpoint, target)
    hf: Any = empty_model(beside.config, dtype)
    streamed = None
    if stream:
        streamed = _streamed(hf, checkpoint, dtype, target, device_map)
    elif device_map is None:
        fill(hf, checkpoint, dtype, lambda _: target)
        hf.to(target)
    else:
        _fill_and_dispatch(hf, checkpoint, dtype, device_map)
    give_back()
    if beside.generation_config is not None:
        hf.generation_config = beside.generation_config
    model = HookedModel(hf, beside.tokenizer, _row(checkpoint, hf.config), checkpoint, streamed)
    if model.architecture.inferred:
        require_sums(model)
    return model


def _row(checkpoint: Checkpoint, config: Any) -> Architecture:
    """The row of a model's config: a GGUF's is the first of its name, a table has none for what was inferred."""
    row = checkpoint.architecture
    return row if row.inferred else architecture(config.model_type).expanded(config)


def _streamed(
    hf: Any, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, device_map: object
) -> Streamed:
    from interp.streaming.slot import Slot
    from interp.streaming.streamed import Streamed

    if device_map is not None:
        raise InputError("A streamed model is on one device", "no device_map", "Give a device instead")
    return Streamed(Slot(hf, _row(checkpoint, hf.config), checkpoint, dtype, device))


def usual_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """In what a checkpoint computes where nothing else is asked for; see `load`."""
    return torch.float32 if device.type == "cpu" else checkpoint.compute_dtype


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, the CPU if None, found out before any weight is read.

    Raises:
        InputError: there is no such device.
    """
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        raise InputError(
            f"The device {str(device)!r} cannot be used ({str(error).splitlines()[0]})",
            "cpu, or an accelerator that this machine and this PyTorch have",
            "Leave the device out to use the CPU",
        ) from error


def _fill_and_dispatch(
    hf: Any, checkpoint: Checkpoint, dtype: torch.dtype, device_map: str | Mapping[str, Any]
) -> None:
    from accelerate import dispatch_model, infer_auto_device_map

    if isinstance(device_map, str):
        placed = dict(infer_auto_device_map(hf, no_split_module_classes=list(hf._no_split_modules), dtype=dtype))
    else:
        placed = dict(device_map)
    if "disk" in placed.values():
        raise InputError("The model does not fit into memory, spread over all devices", do="Use a larger machine")
    fill(hf, checkpoint, dtype, device_of(placed))
    dispatch_model(hf, placed)
