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

from interp.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from interp.checkpoint import Checkpoint

Placement = Callable[[str], torch.device]
"""Parameter name → the device it lives on."""


def config_and_tokenizer(checkpoint: Checkpoint, like: str | Path | None) -> tuple[Any, Any]:
    """The model's config, without a quantization config, and its tokenizer; a GGUF takes both from `like`.

    Raises:
        InputError: a GGUF without `like` whose own metadata transformers cannot turn into both.
    """
    from transformers import AutoTokenizer

    if checkpoint.config is not None and like is None:
        return checkpoint.config, AutoTokenizer.from_pretrained(checkpoint.path)
    if like is not None:
        from interp.checkpoint import open_checkpoint

        baseline = open_checkpoint(like)
        return checkpoint.config or baseline.config, AutoTokenizer.from_pretrained(baseline.path)
    return _from_gguf(Path(checkpoint.path))


def _from_gguf(path: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return config, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise InputError(
            f"transformers cannot make a config and a tokenizer from the metadata of {path} ({error})",
            "a baseline to take them from",
            "Give the unquantized checkpoint: load(path, like=baseline)",
        ) from error


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
    places: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    missing = set(places)
    for name in checkpoint.names():
        if name not in places:
            _refuse_unexpected(model, checkpoint, name)
            continue
        tensor = checkpoint.tensor(name, dtype=dtype)
        if tensor.shape != places[name].shape:
            raise InputError(
                f"{checkpoint.path}: the tensor {name} has shape {tuple(tensor.shape)}",
                f"{tuple(places[name].shape)}, as config.json says",
                "Check that config.json belongs to these weights",
            )
        _set(model, name, tensor.to(placement(name)))
        missing.discard(name)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    if missing:
        raise InputError(
            f"{checkpoint.path} has no tensor for {_listing(missing)}",
            "every parameter of the model in the checkpoint",
            "Download the checkpoint again, or check that config.json belongs to these weights",
        )


def _refuse_unexpected(model: PreTrainedModel, checkpoint: Checkpoint, name: str) -> None:
    """Raise unless the model computes the extra tensor itself (old files keep rotary frequencies and masks)."""
    ignored = [*(model._keys_to_ignore_on_load_unexpected or []), r"rotary_emb\.inv_freq$"]
    if not any(re.search(pattern, name) for pattern in ignored):
        raise InputError(
            f"{checkpoint.path}: the {model.config.model_type} model has no place for the tensor {name}",
            "only tensors that the model of config.json has",
            "Check that config.json belongs to these weights",
        )


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
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
