"""What a path-integrated attribution finds: the share of every weight, summed over what people ask about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from interp.architectures import Architecture
from interp.batching import TEXTS_AT_ONCE, Batch
from interp.model import HookedModel
from probes.attribution.memory import differentiable_tokens
from probes.attribution.parts import Part, Parts, WeightAxis
from probes.attribution.settings import PartKind

RELATIVE_GAP = 0.02
"""What the sum of the parts may miss of the shift, relative to it."""
ABSOLUTE_GAP = 0.01
"""What the sum of the parts may miss of the shift in any case, in units of the objective."""


@dataclass(frozen=True)
class AttributedPrompts:
    """What the objective is measured on.

    Attributes:
        texts: rendered prompts.
        strata: the (side, category) pairs whose means are wanted.
        stratum: which of them each prompt is in.
    """

    texts: Sequence[str]
    strata: tuple[tuple[str, str], ...]
    stratum: Int[Tensor, " prompt"]

    @property
    def sides(self) -> list[str]:
        """The sides there are, each once."""
        return list(dict.fromkeys(side for side, _ in self.strata))

    @property
    def side(self) -> Int[Tensor, " prompt"]:
        """The side of each prompt, as an index of `sides`."""
        return torch.tensor([self.sides.index(side) for side, _ in self.strata])[self.stratum]

    def chosen(self, side: str, category: str | None = None) -> list[int]:
        """The strata of a side, or the one of a category of it."""
        return [i for i, (s, c) in enumerate(self.strata) if s == side and category in (None, c)]

    def batches(self, model: HookedModel, batch_size: int | None, following: int = 0) -> list[Batch]:
        """The prompts as batches for this model, so large that their activations can be kept for a pass back.

        Args:
            model: what reads them.
            batch_size: prompts of a batch; default what the activations allow.
            following: tokens that the objective puts after each prompt.
        """
        longest = max(map(len, model.token_ids(self.texts)))
        budget = differentiable_tokens(model)
        at_most = min(TEXTS_AT_ONCE, batch_size or max(1, budget // (longest + following)))
        return list(model.batches(self.texts, batch_size=batch_size, at_most=at_most, budget=budget))


Sums = dict[str, Float64[Tensor, "stratum unit"]]


@dataclass
class Attribution:
    """Who moved the objective between a baseline and a cell.

    Attributes:
        parts: of the model.
        prompts: what it was measured on.
        before: the objective in the baseline.
        after: in the cell itself.
        end: at the end of the path; the cell's function, rescaling undone.
        steps: of the midpoint rule.
        undone: whether the cell's rescaling was undone; else the path leads to its tensors as they are.
        tied: a parameter's second name → its first. An unembedding that is the embedding has a share for each use.
        parameters: parameter → its share, per prompt.
        heads: layer → shares of its heads, per prompt.
        rows: linear → shares of its weight's rows, summed over the prompts of each stratum.
        columns: linear → of its weight's columns.
        vectors: bias or norm → of its entries.
        groups: linear in a block → shares of its weight's groups (neighbours along a row), summed over a side's
            prompts, [side, row, group]; absent where no group size was given.
        warnings: what the reader of the numbers must know.
    """

    parts: Parts
    prompts: AttributedPrompts
    before: Float64[Tensor, " prompt"]
    after: Float64[Tensor, " prompt"]
    end: Float64[Tensor, " prompt"]
    steps: int = 0
    undone: bool = False
    tied: Mapping[str, str] = field(default_factory=dict)
    parameters: dict[str, Float64[Tensor, " prompt"]] = field(default_factory=dict)
    heads: dict[int, Float64[Tensor, "prompt head"]] = field(default_factory=dict)
    rows: Sums = field(default_factory=dict)
    columns: Sums = field(default_factory=dict)
    vectors: Sums = field(default_factory=dict)
    groups: dict[str, Float[Tensor, "side row group"]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def shift(self) -> Float64[Tensor, " prompt"]:
        """What is to be explained: cell − baseline."""
        return self.after - self.before

    @property
    def total(self) -> Float64[Tensor, " prompt"]:
        """The sum of all shares."""
        return sum(self.parameters.values(), torch.zeros_like(self.before))

    @property
    def discrepancy(self) -> float:
        """Largest difference over prompts between the end of the path and the cell itself."""
        return (self.end - self.after).abs().max().item()

    def gaps(self) -> dict[tuple[str, str], tuple[float, float]]:
        """(side, category or "all") → what the mean sum misses of the mean shift, and the mean shift."""
        gaps = {}
        for side in self.prompts.sides:
            for category in ("all", *(c for s, c in self.prompts.strata if s == side and c)):
                mask = self.mask(self.prompts.chosen(side, None if category == "all" else category))
                shift = self.shift[mask].mean().item()
                gaps[side, category] = (self.total[mask].mean().item() - shift, shift)
        return gaps

    def gap(self) -> float:
        """The largest gap, of any side and category."""
        return max((abs(gap) for gap, _ in self.gaps().values()), default=0.0)

    def complete(self) -> bool:
        """Whether every gap is within 2 % of its shift or 0.01."""
        return all(abs(gap) <= max(ABSOLUTE_GAP, RELATIVE_GAP * abs(shift)) for gap, shift in self.gaps().values())

    def mask(self, strata: Sequence[int]) -> Tensor:
        """Which prompts are in these strata."""
        return torch.isin(self.prompts.stratum, torch.tensor(list(strata)))

    def scores(self, kind: PartKind, strata: Sequence[int]) -> dict[Part, float]:
        """Mean share of every part of a kind over the prompts of these strata, in the objective's unit.

        Layers, modules and other parameters add up to the total; heads and neurons to their modules, but for the
        biases of the output and down projections.
        """
        mask = self.mask(strata)
        if kind is PartKind.NEURON:
            n, stratum_indices = int(mask.sum()), torch.tensor(list(strata))
            means = {layer: self.neurons(layer)[stratum_indices].sum(0) / n for layer in range(self.parts.n_layers)}
            return {part: means[part.layer][part.index].item() for part in self.parts.every(kind)}
        return {part: self.per_prompt(part)[mask].mean().item() for part in self.parts.every(kind)}

    def per_prompt(self, part: Part) -> Float64[Tensor, " prompt"]:
        """Share of a layer, a module, a head or another parameter on every prompt; 0 for what does not differ."""
        zeros = torch.zeros_like(self.before)
        match part.kind:
            case PartKind.HEAD:
                return self.heads[part.layer][:, part.index] if part.layer in self.heads else zeros
            case PartKind.OTHER:
                return sum((self.parameters[name] for name in self.uses(part.module)), zeros)
            case PartKind.MODULE:
                names = [part.module]
            case _:
                names = [name for name in self.parts.shapes if self.parts.layer_of(name) == part.layer]
        owned = [self.parameters.get(f"{name}.{leaf}", zeros) for name in names for leaf in ("weight", "bias")]
        return sum(owned, zeros)

    def uses(self, parameter: str) -> list[str]:
        """The names under which a parameter has shares: two where it is the unembedding as well as the embedding."""
        return [name for name in self.parameters if self.tied.get(name, name) == parameter]

    def neurons(self, layer: int) -> Float64[Tensor, "stratum neuron"]:
        """Shares of the MLP neurons of a layer: rows (with biases) of what writes them, columns of what reads them."""
        return neuron_sums(self.parts, layer, self.rows, self.columns, self.vectors, len(self.prompts.strata))


ATTRIBUTION_CLASSES = (Attribution, AttributedPrompts, Parts, Architecture)
"""What an attribution is made of, for those who keep one."""


def neuron_sums(
    parts: Parts,
    layer: int,
    rows: Mapping[str, Tensor],
    columns: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    n: int,
) -> Float64[Tensor, "n neuron"]:
    """Sums over the weights of every neuron of a layer, from sums over the rows and columns of each linear."""
    block = f"{parts.architecture.blocks}.{layer}"
    sums = torch.zeros(n, parts.n_neurons(layer), dtype=torch.float64)
    written = [f"{block}.{name}" for name in parts.architecture.mlp_in]
    for each in [rows.get(name) for name in written] + [vectors.get(f"{name}.bias") for name in written]:
        if each is not None:
            sums = sums + each.unflatten(-1, (-1, sums.shape[1])).sum(-2)  # a matrix may hold gates and ups
    return sums + columns.get(f"{block}.{parts.architecture.mlp_out}", 0.0)


def head_shares(parts: Parts, linear: str, axis: WeightAxis, power: int = 1) -> Float64[Tensor, "unit head"] | None:
    """For each row or column of a linear, how much of it counts for each head of its layer; None where none does."""
    layer = parts.layer_of(linear)
    n_out, n_in = parts.shapes[linear]
    shares = torch.zeros(n_out if axis is WeightAxis.ROWS else n_in, parts.n_heads, dtype=torch.float64)
    for part in parts.every(PartKind.HEAD):
        for piece in parts.slices(part) if part.layer == layer else ():
            if piece.linear == linear and piece.axis is axis:
                shares[piece.start : piece.stop, part.index] = piece.share**power
    return shares if shares.any() else None
