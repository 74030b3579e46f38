"""What an error of the same size with random signs would do: the null of an attribution, at first order.

At the baseline a change Δ of the weights moves the objective by Σ g·Δ to first order, g the gradient. With an
independent random sign for every weight's error the sum has mean 0 and variance Σ (g·Δ)², and as a sum of very many
terms it is normal. A part whose share is beyond this is one in which the errors lean together, not just large ones.

(g·Δ)² is of the gradient over all prompts, which the batches add up to: whole gradients are needed, for as many
modules at a time as fit a budget of memory, with one pass over the prompts for each such chunk. Where one forward pass
reads all prompts, a gradient is whole when it comes, and gone before the next one is made.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int8
from torch import Tensor, nn

from interp.memory import SMALLEST, give_back, spare_memory
from interp.model import HookedModel
from interp.pairs.weight_path import WeightPath
from probes.attribution.integrated_gradients import (
    BatchObserver,
    Objective,
    ShareProgress,
    following,
    gradient_of_weight,
    in_one_pass,
    observe,
)
from probes.attribution.memory import row_blocks
from probes.attribution.parts import Part, Parts, WeightAxis
from probes.attribution.settings import PartKind
from probes.attribution.shares import AttributedPrompts, Sums, head_shares, neuron_sums

DRAWS = 20
"""Random sign flips actually drawn, to check the variance."""


@dataclass
class Moments:
    """Sums over weights of (g·Δ)^power for each side's mean objective.

    Attributes:
        parts: of the model.
        power: 1 or 2.
        n_sides: sides there are.
        rows: linear → sums over its weight's rows, [side, row].
        columns: linear → over its columns.
        vectors: bias or norm → its entries.
        others: embedding → the sum over all of it, [side, 1].
    """

    parts: Parts
    power: int
    n_sides: int
    rows: Sums = field(default_factory=dict)
    columns: Sums = field(default_factory=dict)
    vectors: Sums = field(default_factory=dict)
    others: Sums = field(default_factory=dict)

    def parameter(self, name: str) -> Float64[Tensor, " side"]:
        """The sum over one parameter; 0 if it does not differ."""
        for sums, key in ((self.rows, name.removesuffix(".weight")), (self.vectors, name), (self.others, name)):
            if key in sums:
                return sums[key].sum(1)
        return torch.zeros(self.n_sides, dtype=torch.float64)

    def neurons(self, layer: int) -> Float64[Tensor, "side neuron"]:
        """The sums of every MLP neuron of a layer."""
        return neuron_sums(self.parts, layer, self.rows, self.columns, self.vectors, self.n_sides)

    def heads(self, layer: int) -> Float64[Tensor, "side head"]:
        """The sums of every head of a layer; a shared weight counts by its share, to the same power."""
        totals = torch.zeros(self.n_sides, self.parts.n_heads, dtype=torch.float64)
        for name in self.parts.shapes:
            if self.parts.layer_of(name) != layer:
                continue
            for axis, sums in ((WeightAxis.ROWS, self.rows), (WeightAxis.COLUMNS, self.columns)):
                shares = head_shares(self.parts, name, axis, self.power)
                if shares is None:
                    continue
                totals += sums[name] @ shares if name in sums else 0.0
                bias = self.vectors.get(f"{name}.bias") if axis is WeightAxis.ROWS else None
                totals += bias @ shares if bias is not None else 0.0
        return totals

    def part(self, part: Part) -> Float64[Tensor, " side"]:
        """The sums of any part."""
        match part.kind:
            case PartKind.NEURON:
                return self.neurons(part.layer)[:, part.index]
            case PartKind.HEAD:
                return self.heads(part.layer)[:, part.index]
            case PartKind.OTHER:
                return self.parameter(part.module)
            case PartKind.MODULE:
                names = [part.module]
            case _:
                names = [name for name in self.parts.shapes if self.parts.layer_of(name) == part.layer]
        zeros = torch.zeros(self.n_sides, dtype=torch.float64)
        return sum((self.parameter(f"{name}.{leaf}") for name in names for leaf in ("weight", "bias")), zeros)

    def add(self, name: str, side: int, products: Tensor, linear: bool) -> None:
        """Take in the products g·Δ of one parameter on one side."""
        module = name.removesuffix(".weight")
        if products.ndim == 1:
            entries = [(self.vectors, name, products.double() ** self.power)]
        else:
            rows, columns = _summed(products, self.power)
            entries = [(self.rows, module, rows), (self.columns, module, columns)]
            entries = entries if linear else [(self.others, name, rows.sum().reshape(1))]
        for sums, key, values in entries:
            zeros = torch.zeros(self.n_sides, len(values), dtype=torch.float64)
            sums.setdefault(key, zeros)[side] = values.cpu()


def _summed(products: Float[Tensor, "out in"], power: int) -> tuple[Float64[Tensor, " out"], Float64[Tensor, " in"]]:
    """Sums of powers along rows, and along columns."""
    rows = torch.zeros(len(products), dtype=torch.float64, device=products.device)
    columns = torch.zeros(products.shape[1], dtype=torch.float64, device=products.device)
    for block in row_blocks(products):
        powered = products[block].double() ** power
        rows[block] = powered.sum(1)
        columns += powered.sum(0)
    return rows, columns


@dataclass
class SignFlips:
    """The first-order attribution and its null.

    Attributes:
        first_order: Σ g·Δ.
        variance: Σ (g·Δ)², what the sum has under random signs.
        drawn: parameter → sums under signs that were drawn, [side, draw].
    """

    first_order: Moments
    variance: Moments
    drawn: dict[str, Float64[Tensor, "side draw"]]

    def drawn_variance_ratio(self) -> float:
        """Mean square of the drawn sums / variance, averaged over parameters and sides: 1 if the formula is right.

        NaN where no parameter has a variance.
        """
        ratios = [
            drawn.square().mean(1)[some] / variance[some]
            for name, drawn in self.drawn.items()
            if (some := (variance := self.variance.parameter(name)) > 0).any()
        ]
        return torch.cat(ratios).mean().item() if ratios else torch.nan


def sign_flips(
    path: WeightPath,
    prompts: AttributedPrompts,
    objective: Objective,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int | None = None,
    budget: int | None = None,
    progress: ShareProgress = lambda _: None,
) -> SignFlips:
    """First-order attribution of a path at its beginning, for the mean objective of each side, and its null.

    Args:
        path: from the baseline to the cell.
        prompts: what the objective is measured on.
        objective: as for `probes.attribution.integrated_gradients.attribute`.
        draws: random sign flips per parameter.
        seed: of these; a parameter's signs depend on nothing else but its name.
        batch_size: prompts per pass.
        budget: bytes of gradients held at a time; by default half the weights', of a streamed model a quarter.
        progress: told the share done.
    """
    parts = Parts.of(path.baseline)
    first, second = (Moments(parts, power, len(prompts.sides)) for power in (1, 2))
    drawn: dict[str, Tensor] = {}
    budget = budget or _gradient_budget(path.baseline)
    for side, name in enumerate(prompts.sides):
        mask = (prompts.side == side).nonzero().flatten().tolist()
        texts = [prompts.texts[index] for index in mask]
        work = AttributedPrompts(texts, ((name, "all"),), torch.zeros(len(texts), dtype=torch.long)).batches(
            path.baseline, batch_size, following(objective)
        )

        def take(parameter: str, products: Tensor, side: int = side) -> None:
            linear = parameter.removesuffix(".weight") in path.linears
            first.add(parameter, side, products, linear)
            second.add(parameter, side, products, linear)
            sums = drawn.setdefault(parameter, torch.zeros(len(prompts.sides), draws, dtype=torch.float64))
            sums[side] = _drawn(products, draws, seed, parameter)

        whole = len(work) == 1 and in_one_pass(objective, path.baseline, work[0])
        chunks = list(_chunks(path, sys.maxsize if whole else budget))
        for done, chunk in enumerate(chunks):
            give_back()
            gradients = _Products(path, chunk, len(texts), take, whole)
            for batch in work:
                observe(path, 0.0, batch, objective, gradients)
            gradients.finish()
            progress((side + (done + 1) / len(chunks)) / len(prompts.sides))
    return SignFlips(first, second, drawn)


def _gradient_budget(model: HookedModel) -> int:
    if model.streamed is None:
        return spare_memory(model)
    return max(SMALLEST, sum(parameter.nbytes for parameter in model.hf.parameters()) // 4)


def _chunks(path: WeightPath, budget: int) -> Iterator[list[str]]:
    """Modules on the path, as many at a time as fit the budget, at least one."""
    chunk: list[str] = []
    held = 0
    for module, changes in path.changes.items():
        size = sum(change.nbytes for change in changes)
        if chunk and held + size > budget:
            yield chunk
            chunk, held = [], 0
        chunk.append(module)
        held += size
    if chunk:
        yield chunk


class _Products(BatchObserver):
    """Adds up gradients of a few modules' parameters, and multiplies them by the change in the end.

    Args:
        path: from baseline to cell.
        modules: on it.
        n: prompts there are.
        take: given each parameter and its g·Δ, g of the mean over the prompts.
        whole: each linear flows once, so that there is nothing to add up: what is made of a matrix is taken at once.
    """

    def __init__(
        self, path: WeightPath, modules: Sequence[str], n: int, take: Callable[[str, Tensor], None], whole: bool
    ) -> None:
        self._path, self._n, self._take, self._whole = path, n, take, whole
        self._modules = set(modules)
        self._embeddings = {
            change.name: change.shape
            for module in modules
            for change in path.changes[module]
            if isinstance(path.baseline.hf.get_submodule(module), nn.Embedding)
        }
        self._gradients: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}

    def linear(self, module: str, inputs: Tensor, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """See `interp.pairs.weight_path.Observer`."""
        if module not in self._modules:
            return
        if weight is not None and self._whole:
            self._take(f"{module}.weight", gradient_of_weight(inputs, gradient).mul_(weight).div_(self._n))
        elif weight is not None:
            _add(self._gradients, module, gradient_of_weight(inputs, gradient))
        if bias is not None:
            _add(self._products, f"{module}.bias", gradient.sum((0, 1)) * bias)

    def affine(self, parameter: str, inputs: Tensor, products: Tensor) -> None:
        """See `interp.pairs.weight_path.Observer`."""
        if parameter.rpartition(".")[0] not in self._modules:
            return
        flat = products.flatten(0, -2)
        if parameter in self._embeddings:
            sums = self._products.setdefault(parameter, flat.new_zeros(self._embeddings[parameter]))
            sums.index_add_(0, inputs.flatten(), flat)
        else:
            _add(self._products, parameter, flat.sum(0))

    def finish(self) -> None:
        """Have taken what was added up."""
        for module in list(self._gradients):
            products = self._gradients.pop(module).mul_(self._path.difference(module)).div_(self._n)
            self._take(f"{module}.weight", products)
        for parameter in list(self._products):
            self._take(parameter, self._products.pop(parameter).div_(self._n))


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name].add_(value) if name in sums else value


def _drawn(products: Float[Tensor, "*weights"], draws: int, seed: int, name: str) -> Float64[Tensor, " draw"]:
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    signs = (torch.randint(2, products.shape, generator=generator, dtype=torch.int8) for _ in range(draws))
    flipped = [_flipped(products, sign) for sign in signs]
    return torch.stack(flipped).cpu() if flipped else torch.zeros(0, dtype=torch.float64)


def _flipped(products: Float[Tensor, "*weights"], sign: Int8[Tensor, "*weights"]) -> Float64[Tensor, ""]:
    """The sum with the signs that 0 and 1 stand for."""
    sums = [
        ((2 * sign[block] - 1).to(products) * products[block]).sum(dtype=torch.float64)
        for block in row_blocks(products)
    ]
    return torch.stack(sums).sum()
