"""A baseline and one cell of it, side by side in the same coordinates, and what exchanging their parts does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, as_tensor

from interp.generation import complete
from interp.memory import spare_memory
from interp.model import HookedModel
from interp.quantize.cells import text_hash
from probes.attribution.parts import Part, Parts, WeightAxis
from probes.attribution.settings import PartKind
from probes.causal.settings import By
from probes.harness.pieces import kept
from probes.labels.refused import READ_TOKENS, refuses
from probes.margin.refusal_margin import ActivationEdit, MarginRuns, accompanied, changed


class Aim(StrEnum):
    """Which model is changed, and towards which."""

    RESTORE = "restore"
    DAMAGE = "damage"


@dataclass
class Interventions:
    """Exchanges between two models of one shape, on fixed prompts.

    Attributes:
        baseline: the unquantized model.
        cell: its quantized copy, in the baseline's coordinates (`interp.pairs.alignment.aligned`).
        runs: the prompts, harmful ones, whose margins are measured.
        texts: the same prompts, rendered.
        parts: of both models.
    """

    baseline: HookedModel
    cell: HookedModel
    runs: MarginRuns
    texts: Sequence[str]
    parts: Parts
    _outcomes: dict[Any, Tensor] = field(default_factory=dict)

    def ends(self, aim: Aim) -> tuple[HookedModel, HookedModel]:
        """The model that is changed, and the one that it is changed towards."""
        return (self.cell, self.baseline) if aim is Aim.RESTORE else (self.baseline, self.cell)

    def unchanged(self, aim: Aim) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
        """Margins of both, unchanged."""
        target, source = self.ends(aim)
        for model in (target, source):
            if id(model) not in self._outcomes:
                name = "baseline" if model is self.baseline else "cell"
                self._outcomes[id(model)] = self._kept(["unchanged", name], partial(self.runs.margins, model))
        return self._outcomes[id(target)], self._outcomes[id(source)]

    def margins(self, aim: Aim, by: By, chosen: Sequence[Part]) -> Float[Tensor, " prompt"]:
        """Margins with some parts exchanged; parts of one kind where activations are. Each set is measured once."""
        return self._once([aim, by], chosen, lambda: self._measured(aim, by, chosen))

    def _measured(self, aim: Aim, by: By, selection: Sequence[Part]) -> Float[Tensor, " prompt"]:
        target, source = self.ends(aim)
        if by is By.WEIGHTS:
            with swapped_weights(target, source, self.parts, selection):
                return self.runs.margins(target)
        return self._with_activations(aim, selection)

    def _once(self, what: list[str], parts: Sequence[Part], compute: Callable[[], Tensor]) -> Tensor:
        """What is measured of a set of parts, in whatever order it is given."""
        key = (*what, distinct := frozenset(parts))
        if key not in self._outcomes:
            self._outcomes[key] = self._kept([*what, *sorted(map(repr, distinct))], compute)
        return self._outcomes[key]

    def _kept(self, what: list[str], compute: Callable[[], Tensor]) -> Tensor:
        """A piece of what is measured on these prompts."""
        return kept(["interventions", text_hash(self.texts), *what], compute)

    def everything(self) -> list[Part]:
        """All layers, and every parameter outside them."""
        return [*self.parts.every(PartKind.LAYER), *self.parts.every(PartKind.OTHER)]

    def refused(self, aim: Aim, chosen: Sequence[Part]) -> Bool[Tensor, " prompt"]:
        """Whether the greedy answer to each prompt is a refusal, with the weights of some parts exchanged."""
        return self._once([aim, "refused"], chosen, lambda: self._answered(aim, chosen))

    def _answered(self, aim: Aim, selection: Sequence[Part]) -> Bool[Tensor, " prompt"]:
        target, source = self.ends(aim)
        with swapped_weights(target, source, self.parts, selection):
            return refused(target, self.texts)

    def _with_activations(self, aim: Aim, selection: Sequence[Part]) -> Float[Tensor, " prompt"]:
        """Margins of the target while activations of the source, which reads the same, replace its own."""
        target, source = self.ends(aim)
        if any(part.kind is PartKind.LAYER for part in selection):
            target.architecture.require_sums("Exchanging what layers add to the residual stream")
        sites = list(dict.fromkeys(site for part in selection for site in sites_of(part)))
        with accompanied(target, source, sites) as activations, changed(target, _changes(activations, selection)):
            return self._runs_beside(source, len(sites)).margins(target)

    def _runs_beside(self, source: HookedModel, n_sites: int) -> MarginRuns:
        """The prompts in batches of which the activations at so many sites fit beside the models."""
        n_tokens = max(1, spare_memory(source) // (n_sites * _widest(source) * source.hf.dtype.itemsize))
        if n_tokens >= max(batch.inputs["input_ids"].numel() for batch in self.runs.batches):
            return self.runs
        return MarginRuns.of(source, self.texts, self.runs.openings, budget=n_tokens)


def _widest(model: HookedModel) -> int:
    """Channels of the widest activation inside a block."""
    return max(max(shape) for shape in Parts.of(model).shapes.values())


def refused(
    model: HookedModel, texts: Sequence[str], computing: Callable[[list[int]], object] | None = None
) -> Bool[Tensor, " prompt"]:
    """Whether the greedy answer to each rendered prompt is a refusal by the broader lexicon (`probes.labels.refused`).

    Args:
        model: open hooks act on it.
        texts: rendered prompts.
        computing: see `interp.generation.complete`.
    """
    answers = complete(model, texts, READ_TOKENS, computing=computing)
    return as_tensor(refuses([answer.text for answer in answers]))


def sites_of(part: Part) -> list[str]:
    """Where the activation of a part is read and replaced: hook points, or the linear whose output it is.

    A layer's is what it adds to the residual stream, the difference of two points.
    """
    block = f"blocks.{part.layer}"
    match part.kind:
        case PartKind.NEURON:
            return [f"{block}.mlp.hook_post"]
        case PartKind.HEAD:
            return [f"{block}.attn.hook_z"]
        case PartKind.LAYER:
            return [f"{block}.hook_resid_pre", f"{block}.hook_resid_post"]
        case _:
            return [part.module]


def _changes(activations: dict[str, Tensor], selection: Sequence[Part]) -> dict[str, ActivationEdit]:
    """For each site, the change that replaces all chosen parts that live there by the other model's."""
    by_site: dict[tuple[str, ...], list[Part]] = defaultdict(list)
    for part in selection:
        by_site[tuple(sites_of(part))].append(part)
    changes: dict[str, ActivationEdit] = {}
    for sites, members in by_site.items():
        if members[0].kind is PartKind.LAYER:
            changes |= _contribution(activations, *sites)
        elif members[0].kind is PartKind.MODULE:
            changes[sites[0]] = partial(_replaced, activations, sites[0])
        else:
            changes[sites[0]] = partial(_put, activations, sites[0], sorted(part.index for part in members))
    return changes


def _replaced(activations: dict[str, Tensor], site: str, own: Tensor) -> Tensor:
    """The other model's activation; it is not held any longer."""
    return activations.pop(site).to(own)


def _put(activations: dict[str, Tensor], site: str, units: list[int], own: Tensor) -> Tensor:
    """Replace neurons or heads, the third dimension of both activations."""
    new = own.clone()
    new[:, :, units] = activations.pop(site)[:, :, units].to(own)
    return new


def _contribution(activations: dict[str, Tensor], before: str, after: str) -> dict[str, ActivationEdit]:
    """The block's output becomes its own input plus what the other model's block added."""
    inputs: list[Tensor] = []

    def remember(activation: Tensor) -> Tensor:
        inputs.append(activation)
        return activation

    def output(own: Tensor) -> Tensor:
        added = activations.pop(after) - activations.pop(before)
        return inputs.pop() + added.to(own)

    return {before: remember, after: output}


@contextmanager
def swapped_weights(target: HookedModel, source: HookedModel, parts: Parts, chosen: Iterable[Part]) -> Iterator[None]:
    """Inside, the chosen parts of `target` hold the weights (and biases) of `source`; afterwards, also after an
    exception, every parameter of `target` is what it was, bit by bit.

    A parameter that is exchanged whole is lent, not copied: inside, nothing may write to it.

    Args:
        target: changed in place while the block is open.
        source: of the same shapes and in the same coordinates (`interp.pairs.alignment.aligned`).
        parts: of these models.
        chosen: may overlap, as heads do that share their keys and values.
    """
    chosen = list(chosen)
    with ExitStack() as restored:
        for part in chosen:
            if part.kind is PartKind.OTHER:
                restored.enter_context(_lent(*(model.hf.get_parameter(part.module) for model in (target, source))))
        for (linear, axis), lines in _lines(parts, chosen).items():
            for own, other, dimension in _exchanged(target, source, linear, axis):
                whole = len(lines) == own.shape[dimension]
                restored.enter_context(_lent(own, other) if whole else _copied(own, other, dimension, lines))
        yield


@contextmanager
def _lent(own: Tensor, other: Tensor) -> Iterator[None]:
    """Inside, a parameter is the other one, on the same memory where that is of its type and place."""
    original = own.data
    own.data = other.data.to(original)
    try:
        yield
    finally:
        own.data = original


@contextmanager
def _copied(own: Tensor, other: Tensor, dimension: int, lines: Int[Tensor, " lines"]) -> Iterator[None]:
    """Inside, some lines of a parameter are those of the other one."""
    where = (slice(None),) * dimension + (lines,)
    original = own.data[where].clone()
    own.data[where] = other.data[where].to(own)
    try:
        yield
    finally:
        own.data[where] = original


def _lines(parts: Parts, selection: Iterable[Part]) -> dict[tuple[str, WeightAxis], Int[Tensor, " lines"]]:
    """Which rows and columns of which linears, each once: one copy per linear and axis however many parts there are."""
    indices: dict[tuple[str, WeightAxis], set[int]] = defaultdict(set)
    for part in selection:
        for piece in parts.slices(part):
            indices[piece.linear, piece.axis].update(range(piece.start, piece.stop))
    return {key: torch.tensor(sorted(lines)) for key, lines in indices.items()}


def _exchanged(
    target: HookedModel, source: HookedModel, linear: str, axis: WeightAxis
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The weight and, with rows, the bias of both models, and the dimension of each in which the lines lie."""
    ours, theirs = (model.hf.get_submodule(linear)._parameters for model in (target, source))
    weight, other = ours["weight"], theirs["weight"]
    assert weight is not None
    assert other is not None
    yield weight, other, (axis is WeightAxis.COLUMNS) ^ target.architecture.conv1d
    bias, other = ours.get("bias"), theirs.get("bias")
    if axis is WeightAxis.ROWS and bias is not None and other is not None:
        yield bias, other, 0
