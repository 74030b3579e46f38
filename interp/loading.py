"""A checkpoint's dense weights → a Hugging Face model, parameter by parameter.

Parameters start on torch's meta device, so nothing is initialized only to be overwritten; the peak is one model plus
one tensor.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.errors import InputError, NotFinite
from interp.experts import expert_shapes, expert_slice
from interp.surroundings import Surroundings, surroundings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from interp.checkpoint import Checkpoint

Placement = Callable[[str], torch.device]
"""Parameter name → the device it lives on."""


def surroundings(checkpoint: Checkpoint, like: str | Path | None) -> Surroundings:
    """What `interp.surroundings.surroundings_of` gives, with the path of the baseline."""
    from interp.checkpoint import open_checkpoint

    return surroundings_of(checkpoint, None if like is None else open_checkpoint(like))


def empty_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config, parameters on the meta device; non-persistent buffers (rotary frequencies) are real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    return model.eval().requires_grad_(False)


def fill(model: PreTrainedModel, checkpoint: Checkpoint, dtype: torch.dtype, placement: Placement) -> None:
    """Put every tensor of the checkpoint into the model, then tie what the config ties.

    Raises:
        InputError: a tensor the model has no place for, one of another shape, or a parameter without a tensor.
    """
    tensors = sources(model, checkpoint)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    missing = {name for name, source in tensors.items() if name != source}
    for name in tensors:
        if name not in missing:
            put(model, name, read_dense(checkpoint, name, shapes[name], dtype, placement(name)))
    _untie(model, missing)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)


def sources(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Name of each of the model's tensors → the checkpoint's that it is: its own, or the one it is tied to.

    A parameter of all experts of a block counts as one of the checkpoint's, too; see `read_dense`.

    Raises:
        InputError: a tensor the model has no place for, or a parameter without a tensor.
    """
    names, row = list(model.state_dict(keep_vars=True)), checkpoint.architecture
    slices = {name: expert_slice(row, name) for name in checkpoint.names()}
    stored = {name if expert is None else expert.parameter for name, expert in slices.items()}
    for name in stored - set(names):
        _refuse_unexpected(model, checkpoint, name)
    found = {name: name if name in stored else model.all_tied_weights_keys.get(name, name) for name in names}
    if missing := {name for name, source in found.items() if source not in stored}:
        raise InputError(
            f"{checkpoint.path} has no tensor for {_listing(missing)}",
            "every parameter of the model in the checkpoint",
            "Download the checkpoint again, or check that config.json belongs to these weights",
        )
    return found


def read_dense(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """A tensor as a model computes with it, in memory of its own: the checkpoint's may be the file's mapped memory, and
    a model's weights may be edited.

    Args:
        checkpoint: that has it.
        name: of the tensor, or of the parameter in which transformers keeps all experts of a block.
        shape: what the config says it is.
        dtype: of the result.
        device: where it is put.

    Raises:
        InputError: it has another shape.
        NotFinite: it holds NaN or infinity.
    """
    weights = expert_shapes(checkpoint.architecture, name, shape)
    if [*weights] == [name]:
        return _read_one(checkpoint, name, shape, dtype, device)
    stacked = torch.empty(shape, dtype=dtype, device=device)
    for weight, each in weights.items():
        if (place := expert_slice(checkpoint.architecture, weight)) is not None:
            place.of(stacked).copy_(_read_one(checkpoint, weight, each, dtype, device))
    return stacked


def _read_one(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    tensor = checkpoint.tensor(name)
    if tensor.shape != shape:
        raise InputError(
            f"{checkpoint.path}: the tensor {name} has shape {tuple(tensor.shape)}",
            f"{shape}, as config.json says",
            "Check that config.json belongs to these weights",
        )
    tensor = tensor.to(device, dtype, copy=not _owns_memory(tensor))
    if not _finite(tensor):
        raise NotFinite(
            f"The tensor {name} of {checkpoint.path} holds NaN or infinity in {dtype}",
            "finite weights",
            "Download or write the checkpoint again; if it is whole, use float32 or bfloat16",
        )
    return tensor


def _owns_memory(tensor: Tensor) -> bool:
    """Whether it is all of what PyTorch allocated for it, and no view: of a larger array, or of a mapped file."""
    storage = tensor.untyped_storage()
    return storage.resizable() and storage.nbytes() == tensor.nbytes


def _untie(model: PreTrainedModel, missing: set[str]) -> None:
    """Let tensors that the config ties and that came with other numbers be ones of their own, as transformers does."""
    for name, original in list(model.all_tied_weights_keys.items()):
        if name in missing or original in missing:
            continue
        tensor, other = model.get_parameter(name), model.get_parameter(original)
        if not torch.equal(tensor, other.to(tensor.device)):
            del model.all_tied_weights_keys[name]
            model.config.tie_word_embeddings = False


def _finite(tensor: Tensor) -> bool:
    """Attention on the CPU takes a row of NaN scores for a masked one, so NaN weights need not show in the output."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def _refuse_unexpected(model: PreTrainedModel, checkpoint: Checkpoint, name: str) -> None:
    """Raise unless the model computes the extra tensor itself (old files keep rotary frequencies and masks)."""
    ignored = [*(model._keys_to_ignore_on_load_unexpected or []), r"rotary_emb\.inv_freq$"]
    if not any(re.search(pattern, name) for pattern in ignored):
        raise InputError(
            f"{checkpoint.path}: the {model.config.model_type} model has no place for the tensor {name}",
            "only tensors that the model of config.json has",
            "Check that config.json belongs to these weights",
        )


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a tensor be the parameter or buffer of this name."""
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if leaf in parent._parameters:
        parent.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        parent.register_buffer(leaf, tensor)


def _listing(names: set[str], shown: int = 5) -> str:
    first = sorted(names)[:shown]
    return ", ".join(first) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def device_of(device_map: Mapping[str, Any]) -> Placement:
    """The placement of an accelerate device map: the longest prefix of the parameter's name decides."""

    def place(name: str) -> torch.device:
        prefix = max((p for p in device_map if name == p or name.startswith(f"{p}.") or p == ""), key=len)
        return torch.device(device_map[prefix])

    return place
