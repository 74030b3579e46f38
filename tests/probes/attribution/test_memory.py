"""What a pass back holds at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp import HookedModel, load
from probes.attribution import memory
from probes.margin.openings import Openings
from probes.margin.refusal_margin import refusal_margin
from tests.attributed import PROMPTS


def _openings(sequences: tuple[tuple[int, ...], ...]) -> Openings:
    n = len(sequences)
    return Openings(sequences, "test", ("",) * n, (0,) * n, (0.0,) * n)


def _saved(model: HookedModel, openings: Openings) -> int:
    """Bytes that the margin of a batch keeps for the pass back."""
    (batch,) = model.batches(["How are you?", "Why is the sky blue?"])
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    embedding = model.hf.get_input_embeddings().weight.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        refusal_margin(model, batch.inputs["input_ids"], batch.inputs["attention_mask"], openings)
    embedding.requires_grad_(False)
    return sum(kept)


def test_openings_keep_no_activations_of_their_own(tiny: Callable[[str], Path]) -> None:
    """What follows the prompts is computed again when its turn comes: of an opening its log-probabilities are kept."""
    model = load(tiny("llama"))
    alone = _saved(model, _openings(((3, 4), (3, 5))))
    few, many = (_saved(model, _openings(tuple((k, 4) for k in range(3, 3 + n)))) for n in (4, 24))
    log_probabilities = 2 * 2 * model.config.vocab_size * 4  # of two prompts, before and after the first token
    assert (many - few) / 20 < 3 * log_probabilities < alone / 10
    assert few < 1.2 * alone


def test_batches_shrink_with_what_may_be_held(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny("llama"))
    whole = PROMPTS.batches(model, None)
    assert len(whole) == 1
    weights = sum(parameter.nbytes for parameter in model.hf.parameters())
    tokens = memory.differentiable_tokens(model)
    monkeypatch.setattr(memory, "SMALLEST", 0)
    assert memory.differentiable_tokens(model) == pytest.approx(tokens * weights / 2 / 2**28, abs=1)
    monkeypatch.setattr("probes.attribution.shares.differentiable_tokens", lambda _: 1)
    assert len(PROMPTS.batches(model, None)) == len(PROMPTS.texts)
    assert len(PROMPTS.batches(model, 64)) == 1
