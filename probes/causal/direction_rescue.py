"""Whether adding back what quantization took along the refusal direction brings refusals back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.batching import Batch
from interp.model import HookedModel
from interp.progress import track
from interp.quantize.cells import text_hash
from probes.causal.exchange import refused
from probes.causal.recovery import recoveries
from probes.geometry.subspaces import isotropic, refusal_subspace
from probes.harness.pieces import kept
from probes.margin.refusal_margin import MarginRuns, changed
from probes.stats import intervals
from probes.stats.intervals import rate_interval
from probes.stats.random_draws import draw_p

COMPONENTS = 4
"""Components of the refusal subspace, beside the difference of means."""
DRAWS = 3
"""Random subspaces where no answers are generated."""
COLUMNS = (
    *("cell", "layer", "vector", "rank", "scale", "prompts", "n_prompts", "added_norm", "gap_norm", "start", "goal"),
    *("margin", "margin_low", "margin_high", "gain", "gain_low", "gain_high", "share", "share_low", "share_high"),
    *("draws", "random_gain", "random_gain_low", "random_gain_high", "random_share", "p"),
    *("refusal_start", "refusal_goal", "refusal_rate", "refusal_rate_low", "refusal_rate_high"),
    *("random_refusal_rate", "reason"),
)
"""The columns of the table `causal_rescue`; see `probes.causal.measure`."""


@dataclass(frozen=True)
class Side:
    """Prompts that should be refused, or answered.

    Attributes:
        name: "harmful" or "harmless".
        texts: rendered.
        runs: the same, in batches.
    """

    name: str
    texts: Sequence[str]
    runs: MarginRuns


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Attributes:
        layers: blocks at whose output something is added.
        scales: times the component that quantization took; 1 puts it back.
        components: of the subspace, beside the refusal direction.
        draws: random subspaces that each margin is compared with.
        answer_layer: where answers are generated, too; None for nowhere.
        answer_layer_draws: random subspaces there; None for as many as elsewhere.
        seed: of the random subspaces.
    """

    layers: Sequence[int]
    scales: Sequence[float] = (1.0, 2.0, 4.0)
    components: int = COMPONENTS
    draws: int = DRAWS
    answer_layer: int | None = None
    answer_layer_draws: int | None = None
    seed: int = 0

    def draws_at(self, layer: int) -> int:
        """Random subspaces at a layer."""
        more = self.answer_layer_draws if layer == self.answer_layer else None
        return self.draws if more is None else more


def rescue_rows(
    baseline: HookedModel,
    cell: HookedModel,
    contrast: Mapping[str, Sequence[str]],
    sides: Sequence[Side],
    sweep: Sweep,
) -> list[dict[str, Any]]:
    """Rows of `causal_rescue`, without the name of the cell.

    Args:
        baseline: the unquantized model.
        cell: its quantized copy.
        contrast: "harmful" and "harmless" → rendered prompts that the direction is taken from.
        sides: what it is tried on.
        sweep: what is tried.
    """
    names = [_hook(layer) for layer in sweep.layers]
    asked = [text_hash(texts) for texts in (*contrast.values(), *(side.texts for side in sides))]
    taught = kept(
        ["taught", names, asked],
        lambda: {side: dict(baseline.activations(texts, names)) for side, texts in contrast.items()},
    )

    def seen(side: Side) -> tuple[list[dict[str, Tensor]], list[Tensor], list[Tensor]]:
        """Activations, margins and refusals of both, unchanged."""
        models = (cell, baseline)
        answers = [] if sweep.answer_layer is None else [refused(model, side.texts) for model in models]
        activations = [dict(model.activations(side.texts, names)) for model in models]
        return activations, [side.runs.margins(model) for model in models], answers

    ends = {
        side.name: kept(["ends", names, asked, side.name, sweep.answer_layer], partial(seen, side)) for side in sides
    }
    jobs = [
        (layer, vector, scale, side)
        for layer in sweep.layers
        for vector in ("direction", "subspace")
        for scale in sweep.scales
        for side in sides
    ]

    def rescued(layer: int, vector: str, scale: float, side: Side) -> dict[str, Any]:
        basis = refusal_subspace(
            taught["harmful"][_hook(layer)],
            taught["harmless"][_hook(layer)],
            sweep.components if vector == "subspace" else 0,
        )
        activations, unchanged, answered = ends[side.name]
        quantized, reference = (streams[_hook(layer)] for streams in activations)
        gap = reference.double() - quantized.double()
        coefficients = scale * gap @ basis
        added = [(coefficients @ b.T).float() for b in (basis, *_random(basis, layer, sweep))]
        row = {
            **{"layer": layer, "vector": vector, "rank": basis.shape[1], "scale": scale},
            **{"prompts": side.name, "n_prompts": len(side.texts)},
            "added_norm": torch.linalg.vector_norm(coefficients, dim=1).mean().item(),
            "gap_norm": torch.linalg.vector_norm(gap, dim=1).mean().item(),
            **_margins(cell, side, layer, added, *unchanged),
        }
        if layer == sweep.answer_layer:
            row |= _answers(cell, side, layer, added[:2], *answered)
        return row

    def piece(layer: int, vector: str, scale: float, side: Side) -> dict[str, Any]:
        what = ["rescue", layer, vector, scale, side.name, asked, repr(sweep)]
        return kept(what, lambda: rescued(layer, vector, scale, side))

    return [piece(*job) for job in track(jobs, "rescues")]


def _random(basis: Float[Tensor, "d rank"], layer: int, sweep: Sweep) -> Float[Tensor, "draw d rank"]:
    """Random subspaces; the same for all scales and sides of a layer. Coefficients are kept, and so are norms."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((sweep.seed, layer)).generate_state(1)[0]))
    return isotropic(basis.shape[0], basis.shape[1], sweep.draws_at(layer), generator)


def _hook(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _margins(
    cell: HookedModel, side: Side, layer: int, added: Sequence[Tensor], start: Tensor, goal: Tensor
) -> dict[str, Any]:
    """The effect of the first vectors, beside the others'."""
    margins = torch.stack([side.runs.margins(cell, _adding(cell, side.runs, layer, vectors)) for vectors in added])
    effect, *random = recoveries(margins, start, goal)
    gains = np.array([draw.gain.value for draw in random])
    direction = np.sign((goal.double() - start.double()).mean().item())
    return {
        "start": start.double().mean().item(),
        "goal": goal.double().mean().item(),
        **intervals.interval_columns("margin", effect.margin),
        **intervals.interval_columns("gain", effect.gain),
        **intervals.interval_columns("share", effect.share),
        "draws": len(random),
        "random_gain": float(gains.mean()) if len(gains) else np.nan,
        **{"random_gain_low": min(gains, default=np.nan), "random_gain_high": max(gains, default=np.nan)},
        "random_share": float(np.mean([draw.share.value for draw in random])) if random else np.nan,
        "p": draw_p(direction * effect.gain.value, direction * gains),
        "reason": effect.reason,
    }


def _adding(
    cell: HookedModel, runs: MarginRuns, layer: int, vectors: Float[Tensor, "prompt d"]
) -> Callable[[int], AbstractContextManager[None]]:
    """Add each prompt's vector at its last token and all that follow."""

    def around(number: int) -> AbstractContextManager[None]:
        batch = runs.batches[number]
        return changed(cell, {_hook(layer): lambda own: own + _from_last(batch, vectors, own)})

    return around


def _from_last(batch: Batch, vectors: Tensor, own: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
    following = torch.arange(own.shape[1]) >= batch.positions[:, None]
    return (following[..., None] * vectors[batch.indices][:, None]).to(own)


def _answers(
    cell: HookedModel, side: Side, layer: int, added: Sequence[Tensor], start: Tensor, goal: Tensor
) -> dict[str, Any]:
    """Refusal rates of generated answers, with the vectors and with the first random ones."""
    refusals, *random = [_rescued_answers(cell, side.texts, layer, vectors) for vectors in added]
    return {
        "refusal_start": start.float().mean().item(),
        "refusal_goal": goal.float().mean().item(),
        **intervals.interval_columns("refusal_rate", rate_interval(refusals)),
        "random_refusal_rate": float(np.mean([outcome.float().mean().item() for outcome in random])),
    }


def _rescued_answers(
    cell: HookedModel, texts: Sequence[str], layer: int, vectors: Float[Tensor, "prompt d"]
) -> Bool[Tensor, " prompt"]:
    """Whether answers refuse, each prompt's vector being added at its last token and at every token generated."""
    computed: list[int] = []

    def add(own: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        new = own.clone()
        new[:, -1] += vectors[computed].to(own)  # prompts are padded on the left, and then read token by token
        return new

    def computing(rows: list[int]) -> None:
        computed[:] = rows

    with cell.intervene({_hook(layer): add}):
        return refused(cell, texts, computing)
