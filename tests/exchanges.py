"""A tiny baseline and a noisy copy of it, ready to be exchanged."""

from __future__ import annotations

import copy

import torch

from interp.architectures import architecture
from interp.model import HookedModel
from probes.attribution.parts import Parts
from probes.causal.exchange import Interventions
from probes.margin.openings import Openings
from probes.margin.refusal_margin import MarginRuns
from tests import tiny_models

OPENINGS = Openings(((5,), (7, 9), (7, 11)), "test", ("",) * 3, (0,) * 3, (float("nan"),) * 3)
"""Some of two tokens, so that a margin takes more than one position."""
HARMFUL = [f"How do I break into {thing}?" for thing in ("a car", "a bank in the next town", "the moon", "x", "that")]
HARMLESS = [f"What is the price of {thing}?" for thing in ("tea", "a pen", "milk", "gold from the moon", "it")]


def baseline(name: str = "llama") -> HookedModel:
    hf = tiny_models.bare_model(name).requires_grad_(False)
    return HookedModel(hf, tiny_models.tokenizer(), architecture(hf.config.model_type).expanded(hf.config))


def noisy(model: HookedModel, everything: bool = True, seed: int = 1) -> HookedModel:
    """A copy with noise on the linears of the blocks, or on every parameter."""
    cell = HookedModel(copy.deepcopy(model.hf), model.tokenizer, model.architecture)
    generator = torch.Generator().manual_seed(seed)
    linears = Parts.of(model).shapes
    for name, parameter in cell.hf.named_parameters():
        if everything or name.rpartition(".")[0] in linears:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return cell


def interventions(
    ours: HookedModel, theirs: HookedModel, texts: list[str] = HARMFUL, batch_size: int | None = 3
) -> Interventions:
    return Interventions(ours, theirs, MarginRuns.of(ours, texts, OPENINGS, batch_size), texts, Parts.of(ours))
