"""The parts of a model that an error can sit in, as slices of its weights: neurons, heads, modules, layers.

- A neuron of an MLP: its rows of the linears before the activation (gate and up, also where one matrix holds both),
  with their biases, and its column of the down projection.
- A head: its rows of the query projection, with their biases, its columns of the output projection, and the rows of the
  key and value heads it reads. Where query heads share a key-value head, those rows belong to every head of the group:
  a *sum* over weights counts 1 / (heads of the group) of them for each head (`Slice.share`), so that heads add up to
  their modules; *swapping* a head's weights swaps all of them.
- A module: a whole linear, with its bias. The biases of the output and down projections belong to no head or neuron.
- A layer: all linears of a block.
- Other: one parameter outside these (an embedding, a norm, the unembedding).

Rows and columns are of the weight as [out, in], whatever the model's own layout (GPT-2 stores the transpose).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from interp.architectures import Architecture
from interp.errors import InputError
from interp.model import HookedModel
from probes.attribution.settings import PartKind


@dataclass(frozen=True, order=True)
class Part:
    """One part.

    Attributes:
        kind: what it is.
        layer: its block, 0-based; −1 for `OTHER`.
        index: the neuron or head within its layer, 0-based; −1 for the other kinds.
        module: the linear's name in the Hugging Face model (`model.layers.0.mlp.up_proj`), for `MODULE`; the
            parameter's (`model.norm.weight`), for `OTHER`; else "".
    """

    kind: PartKind
    layer: int = -1
    index: int = -1
    module: str = ""

    @property
    def label(self) -> str:
        """For people: `L3 neuron 17`, `L3 mlp.up_proj`."""
        if self.kind is PartKind.OTHER:
            return self.module
        where = f"L{self.layer}"
        if self.kind is PartKind.MODULE:
            return f"{where} {self.module.partition(f'.{self.layer}.')[2]}"
        return where if self.kind is PartKind.LAYER else f"{where} {self.kind} {self.index}"


class WeightAxis(StrEnum):
    """What a slice is made of."""

    ROWS = "rows"
    COLUMNS = "columns"


class Slice(NamedTuple):
    """Neighbouring rows or columns of one linear.

    Attributes:
        linear: its name in the Hugging Face model.
        axis: rows (outputs, which have biases) or columns (inputs).
        start: the first of them.
        stop: one beyond the last.
        share: of a sum over the slice, how much counts for this part.
    """

    linear: str
    axis: WeightAxis
    start: int
    stop: int
    share: float = 1.0

    @property
    def has_bias(self) -> bool:
        """Whether the linear's `bias[start:stop]` goes with it."""
        return self.axis is WeightAxis.ROWS

    def of(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "rows columns"]:
        """These entries of a weight, a view."""
        return weight[self.start : self.stop] if self.axis is WeightAxis.ROWS else weight[:, self.start : self.stop]


@dataclass(frozen=True)
class Parts:
    """The parts of one model.

    Attributes:
        architecture: its row in the table.
        n_heads: query heads per layer.
        shapes: linear inside the blocks → (out, in), in the model's order.
        others: every other parameter's name.
    """

    architecture: Architecture
    n_heads: int
    shapes: Mapping[str, tuple[int, int]]
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: HookedModel) -> Parts:
        """The parts of a loaded model; parameters that are tied are listed once.

        Raises:
            InputError: a mixture of experts.
        """
        row = model.architecture
        row.require_modules()
        blocks = model.hf.get_submodule(row.blocks)
        shapes: dict[str, tuple[int, int]] = {}
        for name, module in blocks.named_modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.ndim == 2:
                out, inputs = reversed(weight.shape) if row.conv1d else weight.shape
                shapes[f"{row.blocks}.{name}"] = (out, inputs)
        tied = model.tied
        names = [name for name, _ in model.hf.named_parameters(remove_duplicate=False) if name not in tied]
        others = [name for name in names if name.rpartition(".")[0] not in shapes]
        return cls(row, int(model.config.num_attention_heads), shapes, tuple(others))

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len({self.layer_of(name) for name in self.shapes})

    def layer_of(self, linear: str) -> int:
        """The block a linear is in."""
        return int(linear.removeprefix(f"{self.architecture.blocks}.").partition(".")[0])

    def every(self, kind: PartKind) -> list[Part]:
        """All parts of a kind, by layer and index."""
        layers = range(self.n_layers)
        match kind:
            case PartKind.LAYER:
                return [Part(kind, layer) for layer in layers]
            case PartKind.MODULE:
                return [Part(kind, self.layer_of(name), module=name) for name in self.shapes]
            case PartKind.HEAD:
                attending = [layer for layer in layers if self._attends(layer)]
                return [Part(kind, layer, head) for layer in attending for head in range(self.n_heads)]
            case PartKind.NEURON:
                return [Part(kind, layer, neuron) for layer in layers for neuron in range(self.n_neurons(layer))]
            case PartKind.OTHER:
                return [Part(kind, module=name) for name in self.others]

    def n_neurons(self, layer: int) -> int:
        """Neurons of a layer's MLP."""
        return self.shapes[self._linear(layer, self.architecture.mlp_out)][1]

    def slices(self, part: Part) -> list[Slice]:
        """The weights that make up a part; none for `OTHER`, which is a whole parameter.

        Raises:
            InputError: the model has no such part.
        """
        match part.kind:
            case PartKind.NEURON:
                return self._neuron(part.layer, self._checked(part, self.n_neurons(part.layer)))
            case PartKind.HEAD:
                return self._head(part.layer, self._checked(part, self.n_heads))
            case PartKind.MODULE:
                if part.module not in self.shapes:
                    raise InputError(f"The model has no linear {part.module!r}", f"one of {', '.join(self.shapes)}")
                return [self._whole(part.module)]
            case PartKind.LAYER:
                return [self._whole(name) for name in self.shapes if self.layer_of(name) == part.layer]
            case PartKind.OTHER:
                return []

    def size(self, part: Part) -> int:
        """How many weights a part has, biases not counted."""
        return sum((s.stop - s.start) * self.shapes[s.linear][s.axis is WeightAxis.ROWS] for s in self.slices(part))

    def _linear(self, layer: int, name: str) -> str:
        return f"{self.architecture.blocks}.{layer}.{name}"

    def _attends(self, layer: int) -> bool:
        return self.architecture.of_block(layer).attention_out == self.architecture.attention_out

    def _whole(self, linear: str) -> Slice:
        return Slice(linear, WeightAxis.ROWS, 0, self.shapes[linear][0])

    def _neuron(self, layer: int, neuron: int) -> list[Slice]:
        row, count = self.architecture, self.n_neurons(layer)
        inputs = [self._linear(layer, name) for name in row.mlp_in]
        rows = [(name, first + neuron) for name in inputs for first in range(0, self.shapes[name][0], count)]
        written = [Slice(name, WeightAxis.ROWS, index, index + 1) for name, index in rows]
        return [*written, Slice(self._linear(layer, row.mlp_out), WeightAxis.COLUMNS, neuron, neuron + 1)]

    def _head(self, layer: int, head: int) -> list[Slice]:
        row = self.architecture
        if not self._attends(layer):
            raise InputError(
                f"Layer {layer} of this {row.model_type} model has a recurrence, none of whose heads is a part",
                "a head of a layer with attention",
                "Ask for the layer or its linears",
            )
        out = self._linear(layer, row.attention_out)
        width = self.shapes[out][1] // self.n_heads
        read = Slice(out, WeightAxis.COLUMNS, head * width, (head + 1) * width)
        inputs = [self._linear(layer, name) for name in row.attention_in]
        if len(inputs) == 1:
            return [*self._fused_head(inputs[0], head, width), read]
        query, *shared = inputs
        queries = self.shapes[query][0] // self.n_heads  # twice the width where there is a gate after each head's query
        rows = [Slice(query, WeightAxis.ROWS, head * queries, (head + 1) * queries)]
        own = [name for name in shared if name in self.shapes]  # keys may be values, or both another layer's (Gemma 4)
        rows += [self._shared_rows(name, head, width, 0, self.shapes[name][0]) for name in own]
        return [*rows, read]

    def _shared_rows(self, linear: str, head: int, width: int, begin: int, n_rows: int) -> Slice:
        """The rows of the key or value head that a query head reads, among `n_rows` from `begin` on."""
        group = self.n_heads // (n_rows // width)
        first = begin + head // group * width
        return Slice(linear, WeightAxis.ROWS, first, first + width, 1 / group)

    def _fused_head(self, linear: str, head: int, width: int) -> Sequence[Slice]:
        if self.architecture.attention_in_by_head:
            return [Slice(linear, WeightAxis.ROWS, 3 * head * width, 3 * (head + 1) * width)]
        queries = self.n_heads * width  # after them all keys, then as many values
        n_shared = (self.shapes[linear][0] - queries) // 2
        shared = [self._shared_rows(linear, head, width, queries + part * n_shared, n_shared) for part in range(2)]
        return [Slice(linear, WeightAxis.ROWS, head * width, (head + 1) * width), *shared]

    @staticmethod
    def _checked(part: Part, count: int) -> int:
        if not 0 <= part.index < count:
            raise InputError(f"There is no {part.kind} {part.index} in layer {part.layer}", f"0 to {count - 1}")
        return part.index


def linear_weight(module: nn.Module, architecture: Architecture) -> Float[Tensor, "out in"]:
    """A loaded linear's weight as [out, in], a view of its memory."""
    weight = module.get_parameter("weight").detach()
    return weight.T if architecture.conv1d else weight
