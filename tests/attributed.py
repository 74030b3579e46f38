"""Pairs of tiny models for tests of attribution, and objectives on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp import HookedModel, load
from interp.batching import Batch
from probes.attribution.cell import MarginObjective
from probes.attribution.shares import AttributedPrompts
from probes.margin.openings import Openings
from tests.tiny_models import TEXTS

OPENINGS = Openings(((30,), (31, 32), (31, 33)), "lexicon", ("", "", ""), (0, 0, 0), (0.0, 0.0, 0.0))
"""Of one token and of two: two forward passes for a margin."""
MARGIN = MarginObjective(OPENINGS)
STRATA = (("harmful", "a"), ("harmful", "b"), ("harmless", "all"))
PROMPTS = AttributedPrompts(TEXTS, STRATA, torch.tensor([0, 2, 1, 0, 2]))
NOT_ON_THE_PATH = ("linear_attn.A_log", "linear_attn.dt_bias", "conv1d.weight")
"""A recurrence's own parameters, in which it is not affine."""


def token_odds(model: HookedModel, batch: Batch) -> Float[Tensor, " batch"]:
    """The logit of one token against another's at the last position, in the model's dtype."""
    logits = batch.at_position(model.hf(**batch.inputs, use_cache=False).logits)
    return logits[:, 30] - logits[:, 31]


def noisy(path: Path, size: float = 0.05, chosen: Callable[[str], bool] = lambda name: True) -> HookedModel:
    """The model of a checkpoint with noise in its parameters, also in embeddings, norms and biases."""
    model = load(path)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            if chosen(name):
                parameter += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model
