"""Where a GGUF keeps the linears of experts: those of all experts of a block in one tensor, [experts, out, in].

gpt-oss has gates and ups in turns, as one linear; its files hold them in two tensors, with a bias each.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.architectures import Architecture

GATE_AND_UP = ("mlp.experts.gate_proj", "mlp.experts.up_proj")
OWN_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "self_attn.sinks": (("self_attn.sinks",), "weight"),
    "mlp.experts.gate_up_proj.weight": (GATE_AND_UP, "weight"),
    "mlp.experts.gate_up_proj_bias": (GATE_AND_UP, "bias"),
    "mlp.experts.down_proj_bias": (("mlp.experts.down_proj",), "bias"),
}
"""gpt-oss's parameters whose names are not those of a module with a weight or a bias → the modules that the `gguf`
package has names for, two where they are in turns, and weight or bias."""


class Place(NamedTuple):
    """The modules, as the `gguf` package calls them, whose tensors hold a parameter.

    Attributes:
        modules: one, or two whose rows are taken in turns.
        suffix: weight or bias.
        expert: whose matrix it is; None where it belongs to all, or to none.
    """

    modules: tuple[str, ...]
    suffix: str
    expert: int | None


def of_all_experts(module: str, row: Architecture) -> tuple[str, int | None]:
    """What the `gguf` package calls the module that holds an expert's linear with those of all others, and which
    expert's it is; the module itself where it is none."""
    experts = row.experts
    if experts is None or (match := re.fullmatch(rf"(.*)\.{experts.module}\.([0-9]+)\.(\w+)", module)) is None:
        return module, None
    return f"{match[1]}.{experts.module.replace('mlp', experts.stored_mlp)}.{match[3]}", int(match[2])


def own_place(name: str, row: Architecture) -> Place | None:
    """Where a parameter of gpt-oss is that has a name of its own, or None."""
    match = re.fullmatch(rf"({re.escape(row.blocks)}\.[0-9]+)\.(.*?)(?:(?<=experts)\.([0-9]+))?(\.\w+\.weight)?", name)
    if row.experts is None or not row.experts.transposed or match is None:
        return None
    known = OWN_NAMES.get(f"{match[2]}{match[4] or ''}")
    if known is None:
        return None
    return Place(tuple(f"{match[1]}.{module}" for module in known[0]), known[1], int(match[3]) if match[3] else None)


def in_turns(first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*twice"]:
    """The first of one, the first of the other, the second of one, and so on, along a dimension."""
    return torch.stack([first, second], dim=dim + 1).flatten(dim, dim + 1)
