"""Where a cell goes wrong: the baseline's activations put into it, site by site, layer by layer, by class of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.progress import track
from interp.quantize.cells import text_hash
from probes.causal.exchange import Aim, Interventions
from probes.causal.recovery import Recovery, recoveries
from probes.harness.pieces import kept
from probes.harness.token_positions import Position
from probes.margin.refusal_margin import Recording, changed, replayed
from probes.stats import intervals

SITES = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
ALL = "all"
"""Every token of the prompt, and of an opening that is read after it."""
CLASSES = (str(Position.INSTRUCTION), str(Position.END), ALL)
COLUMNS = (
    *("cell", "layer", "site", "positions", "n_prompts", "tokens", "start", "goal", "margin", "margin_low"),
    *("margin_high", "gain", "gain_low", "gain_high", "share", "share_low", "share_high", "shuffled_gain"),
    *("shuffled_gain_low", "shuffled_gain_high", "shuffled_share", "distance_start", "distance", "shuffled_distance"),
    "reason",
)
"""The columns of the table `causal_patch`; see `probes.causal.measure`."""


NO_TOKENS = "no prompt has such tokens: they are raw text, without a template"
ONE_PROMPT = "a batch of one prompt has no other prompt to take activations from"


@dataclass(frozen=True)
class Span:
    """The tokens of a class in one batch: neighbours, first … last of each row (last < first where there are none).

    Attributes:
        first: column of the first one.
        last: column of the last one.
        onwards: what is read after the prompt belongs to the class, too.
    """

    first: Int[Tensor, " batch"]
    last: Int[Tensor, " batch"]
    onwards: bool = False

    @classmethod
    def of(cls, name: str, classes: Sequence[Sequence[Position]]) -> Span:
        """The span of a class (or `ALL`) in each row, from the classes of its tokens."""
        token_columns = [[c for c, member in enumerate(row) if name in (ALL, str(member))] or [1, 0] for row in classes]
        first, last = (torch.tensor([columns[end] for columns in token_columns]) for end in (0, -1))
        return cls(first, last, name == ALL)

    def put(
        self, own: Float[Tensor, "batch pos d"], other: Float[Tensor, "batch pos d"], donors: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch pos d"]:
        """Replace the tokens of the class by those of the donor rows, the last one by the last one and so on backwards;
        where the donor has fewer, its first one is repeated."""
        width = own.shape[1]
        first, last = self.first.to(own.device)[:, None], self.last.to(own.device)[:, None]
        end = torch.full_like(last, width - 1) if self.onwards else last
        columns = torch.arange(width, device=own.device)
        mask = (columns >= first) & (columns <= end)
        donors = donors.to(own.device)
        taken = (columns - last + last[donors]).clamp(first[donors], end[donors])
        return torch.where(mask[..., None], other[donors[:, None], taken], own)


def patch_rows(
    models: Interventions, classes: Sequence[Sequence[Position]], layers: Sequence[int], seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of `causal_patch`, without the name of the cell.

    Args:
        models: a baseline and a cell.
        classes: of the tokens of every prompt.
        layers: blocks, 0-based.
        seed: of the order in which prompts lend each other activations.
    """
    spans = {
        name: [Span.of(name, [classes[i] for i in batch.indices.tolist()]) for batch in models.runs.batches]
        for name in CLASSES
    }
    tokens = {name: sum(int((s.last - s.first + 1).sum()) for s in spans[name]) / models.runs.n for name in CLASSES}
    shuffled = _shuffled(models, seed)
    own = [torch.arange(len(donors)) for donors in shuffled]

    def in_layer(layer: int) -> list[Tensor]:
        return [margins for site in SITES for margins in at_site(f"blocks.{layer}.{site}")]

    def at_site(site: str) -> list[Tensor]:
        recording = models.runs.record(models.baseline, [site])  # of one site: all prompts' are held
        return [
            _patched(models, recording, site, spans[name], donors) for name in CLASSES for donors in (own, shuffled)
        ]

    asked = text_hash(models.texts)
    keys = [(layer, site, name) for layer in layers for site in SITES for name in CLASSES]
    patched = [
        margins
        for layer in track(layers, "layers patched")
        for margins in kept(["patch", layer, seed, asked], partial(in_layer, layer))
    ]
    start, goal = models.unchanged(Aim.RESTORE)
    effects = recoveries(torch.stack(patched), start, goal)
    apart = min(map(len, shuffled)) > 1
    pairs = zip(effects[::2], effects[1::2], strict=True)
    return [
        {
            **{"layer": layer, "site": site, "positions": name, "n_prompts": len(start), "tokens": tokens[name]},
            **{"start": start.double().mean().item(), "goal": goal.double().mean().item()},
            "distance_start": _distance(start, goal),
            **(_distances(patched[2 * place : 2 * place + 2], goal, apart) if tokens[name] else {}),
            **(_numbers(effect, control, apart) if tokens[name] else {"reason": NO_TOKENS}),
        }
        for place, ((layer, site, name), (effect, control)) in enumerate(zip(keys, pairs, strict=True))
    ]


def _shuffled(models: Interventions, seed: int) -> list[Int[Tensor, " batch"]]:
    """For each batch, another prompt for each prompt: neighbours on a random circle."""
    generator = torch.Generator().manual_seed(seed)
    donors = []
    for batch in models.runs.batches:
        circle = torch.randperm(len(batch.indices), generator=generator)
        donors.append(torch.empty_like(circle).scatter(0, circle, circle.roll(1)))
    return donors


def _patched(
    models: Interventions, recording: Recording, site: str, spans: Sequence[Span], donors: Sequence[Tensor]
) -> Float[Tensor, " prompt"]:
    """Margins of the cell with the baseline's activations at one site and class of tokens."""

    def around(number: int) -> AbstractContextManager[None]:
        def put(own: Tensor, other: Tensor) -> Tensor:
            return spans[number].put(own, other, donors[number])

        return changed(models.cell, {site: replayed(recording, number, site, put)})

    return models.runs.margins(models.cell, around)


def _distance(margins: Float[Tensor, " prompt"], goal: Float[Tensor, " prompt"]) -> float:
    return (margins.double() - goal.double()).abs().mean().item()


def _distances(patched: Sequence[Tensor], goal: Tensor, apart: bool) -> dict[str, float]:
    """How far prompts are from the baseline with their own activations, and with another prompt's."""
    names = ("distance", "shuffled_distance") if apart else ("distance",)
    return {name: _distance(margins, goal) for name, margins in zip(names, patched, strict=False)}


def _numbers(effect: Recovery, control: Recovery, apart: bool) -> dict[str, Any]:
    shown = (
        {**intervals.interval_columns("shuffled_gain", control.gain), "shuffled_share": control.share.value}
        if apart
        else {}
    )
    return {
        **intervals.interval_columns("margin", effect.margin),
        **intervals.interval_columns("gain", effect.gain),
        **intervals.interval_columns("share", effect.share),
        **shown,
        "reason": effect.reason or ("" if apart else ONE_PROMPT),
    }
