"""The names and shapes a Hugging Face model of a given config has, from an instance without storage."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from interp.architectures import Architecture
from interp.experts import expert_shapes

MAX_BLOCKS = 1024
"""More than eight times the blocks of the deepest language model; building a skeleton takes a millisecond for each."""


def count_blocks(names: Iterable[str], prefixes: tuple[str, ...]) -> int:
    """How many different blocks tensors are named after.

    Args:
        names: of tensors.
        prefixes: what stands before the block's number, without the dot, e.g. `model.layers`.
    """
    numbered = re.compile(rf"(?:{'|'.join(map(re.escape, prefixes))})\.([0-9]+)\.")
    return len({match[1] for name in names if (match := numbered.match(name))})


@dataclass(frozen=True)
class Skeleton:
    """A model without weights.

    Attributes:
        shapes: state-dict name to shape in the Hugging Face layout, tied copies omitted.
        linears: names of the linear modules inside the blocks, in the model's order.
        tied: names that share another tensor's storage, to that tensor's name.
        prefix: what checkpoints of the bare base model leave out of every name, e.g. `transformer.`.
    """

    shapes: dict[str, tuple[int, ...]]
    linears: list[str]
    tied: dict[str, str]
    prefix: str

    def untie(self, names: Collection[str]) -> Skeleton:
        """The model in which these tied tensors are ones of their own."""
        shapes = self.shapes | {name: self.shapes[self.tied[name]] for name in names}
        return replace(self, shapes=shapes, tied={k: v for k, v in self.tied.items() if k not in names})


def skeleton(config: Any, architecture: Architecture) -> Skeleton:
    """Build the model of `config` on the meta device and list what it holds."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = architecture.blocks + "."
    shapes = {
        weight: shape
        for name, parameter in [*model.named_parameters(), *_stored_buffers(model)]
        for weight, shape in expert_shapes(architecture, name, tuple(parameter.shape)).items()
    }
    linears: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(blocks) and isinstance(module, (torch.nn.Linear, Conv1D)):
            linears.append(name)
        elif architecture.experts is not None and name.endswith(f".{architecture.experts.module}"):
            within = (weight for weight in shapes if weight.startswith(f"{name}.") and weight.endswith(".weight"))
            linears += [weight.removesuffix(".weight") for weight in within]
    return Skeleton(
        shapes=shapes,
        linears=linears,
        tied=dict(model.all_tied_weights_keys),
        prefix=model.base_model_prefix + ".",
    )


def _stored_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are in the files (Gemma 4's `layer_scalar`), not computed from the config."""
    stored = model.state_dict()
    return ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
