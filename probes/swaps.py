"""Put parts of one model's weights into another, for as long as a `with` block is open."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from interp.model import HookedModel
from probes.parts import Axis, Kind, Part, Parts, linear_weight


@contextmanager
def swapped_weights(target: HookedModel, source: HookedModel, parts: Parts, chosen: Iterable[Part]) -> Iterator[None]:
    """Inside, the chosen parts of `target` hold the weights (and biases) of `source`; afterwards, also after an
    exception, every parameter of `target` is what it was, bit by bit.

    Args:
        target: changed in place while the block is open.
        source: of the same shapes and in the same coordinates (`interp.alignment.aligned`).
        parts: of these models.
        chosen: may overlap, as heads do that share their keys and values.
    """
    chosen = list(chosen)
    kept: list[tuple[Tensor, Tensor]] = []
    indexed: list[tuple[Tensor, tuple[slice | Tensor, ...], Tensor]] = []
    try:
        for part in chosen:
            if part.kind is Kind.OTHER:
                parameter, other = (model.hf.get_parameter(part.module).data for model in (target, source))
                kept.append((parameter, parameter.clone()))
                parameter.copy_(other)
        for (linear, axis), lines in _lines(parts, chosen).items():
            for view, other in _views(target, source, linear, axis):
                where = (lines,) if axis is Axis.ROWS else (slice(None), lines)
                indexed.append((view, where, view[where].clone()))
                view[where] = other[where].to(view)
        yield
    finally:
        for view, where, original in reversed(indexed):
            view[where] = original
        for parameter, original in reversed(kept):
            parameter.copy_(original)


def _lines(parts: Parts, chosen: Iterable[Part]) -> dict[tuple[str, Axis], Int[Tensor, " lines"]]:
    """Which rows and columns of which linears, each once: one copy per linear and axis however many parts there are."""
    found: dict[tuple[str, Axis], set[int]] = defaultdict(set)
    for part in chosen:
        for piece in parts.slices(part):
            found[piece.linear, piece.axis].update(range(piece.start, piece.stop))
    return {key: torch.tensor(sorted(lines)) for key, lines in found.items()}


def _views(target: HookedModel, source: HookedModel, linear: str, axis: Axis) -> Iterator[tuple[Tensor, Tensor]]:
    """The weight as [out, in] and, with rows, the bias, of both models."""
    ours, theirs = (model.hf.get_submodule(linear) for model in (target, source))
    yield linear_weight(ours, target.architecture), linear_weight(theirs, source.architecture)
    bias, other = ours._parameters.get("bias"), theirs._parameters.get("bias")
    if axis is Axis.ROWS and bias is not None and other is not None:
        yield bias.data, other.data
