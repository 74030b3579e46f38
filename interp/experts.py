"""The linears of experts: matrices of their own in checkpoints, slices of one parameter in transformers' models.

A block of E experts holds `experts.gate_up_proj`, [E, 2·inner, width], and `experts.down_proj`, [E, width, inner].
Everything that asks for one linear's weight names a gate, an up and a down projection of each expert. Files hold these,
or the two parameters (Qwen 3.5), of which gpt-oss has both transposed, [E, in, out], and gates and ups in turns, as one
linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from interp.architectures import Architecture, Experts

GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""transformers' two parameters of all experts of a block."""


@dataclass(frozen=True)
class ExpertSlice:
    """Where one expert's linear is in transformers' model, or in a file that holds those of all experts together.

    Attributes:
        parameter: the parameter's name, e.g. `model.layers.0.mlp.experts.gate_up_proj`.
        expert: which expert, 0-based.
        part: which of the matrices that are stacked there.
        parts: how many are.
        transposed: the matrices are [in, out].
    """

    parameter: str
    expert: int
    part: int
    parts: int
    transposed: bool = False

    def of(self, parameter: Float[Tensor, "experts rows columns"]) -> Float[Tensor, "out in"]:
        """The linear's weight, a view."""
        matrix = parameter[self.expert].T if self.transposed else parameter[self.expert]
        return matrix.chunk(self.parts)[self.part]


def stacked_linears(experts: Experts) -> dict[str, tuple[str, ...]]:
    """Parameter of all experts → the linears whose rows it holds one after the other."""
    return {GATE_UP: experts.inputs, DOWN: (experts.output,)}


def expert_slice(row: Architecture, name: str) -> ExpertSlice | None:
    """Where the weight `name` of an expert's linear is; None where it is no expert's."""
    experts = row.experts
    if experts is None or (match := re.fullmatch(rf"(.*\.{experts.module})\.([0-9]+)\.(\w+)\.weight", name)) is None:
        return None
    for parameter, linears in stacked_linears(experts).items():
        if match[3] in linears:
            place = linears.index(match[3])
            return ExpertSlice(f"{match[1]}.{parameter}", int(match[2]), place, len(linears), experts.transposed)
    return None


def expert_shapes(row: Architecture, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The weights that a parameter of the model stands for, with their shapes: itself, if it is not of experts."""
    module, _, leaf = name.rpartition(".")
    experts = row.experts
    if experts is None or not module.endswith(f".{experts.module}") or leaf not in stacked_linears(experts):
        return {name: shape}
    linears = stacked_linears(experts)[leaf]
    count, rows, columns = (shape[0], shape[2], shape[1]) if experts.transposed else shape
    each = (rows // len(linears), columns)
    return {f"{module}.{expert}.{linear}.weight": each for expert in range(count) for linear in linears}


def stored_together(row: Architecture, names: Iterable[str]) -> dict[str, list[str]]:
    """Name of each tensor of a dense file → the weights in it: one, or one of each expert.

    Experts are written apart, which transformers reads as well, but where files never hold them so; see
    `Experts.transposed`.
    """
    held: dict[str, list[str]] = {}
    for name in names:
        place = expert_slice(row, name) if row.experts is not None and row.experts.transposed else None
        held.setdefault(name if place is None else place.parameter, []).append(name)
    return held


def named_weights(model: nn.Module, row: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's data, those of experts apart: views, which may be changed in place."""
    for name, parameter in model.named_parameters():
        names = expert_shapes(row, name, tuple(parameter.shape))
        for weight in names:
            place = expert_slice(row, weight)
            yield weight, parameter.data if place is None else place.of(parameter.data)
