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


def test_several_openings_keep_the_activations_of_one_pass(tiny: Callable[[str], Path]) -> None:
    """Four openings stand after each prompt side by side, where four passes would keep four times as much."""
    model = load(tiny("llama"))
    alone = _saved(model, _openings(((3, 4), (3, 5))))
    several = _saved(model, _openings(tuple((first, 4) for first in range(3, 7))))
    assert several < 2 * alone


def test_several_passes_keep_no_activations(tiny: Callable[[str], Path]) -> None:
    """Under an open hook each is computed again when its turn comes: four keep less than one that stands alone."""
    model = load(tiny("llama"))
    with model.intervene({"hook_embed": lambda value: value}):
        alone = _saved(model, _openings(((3, 4), (3, 5))))
        several = _saved(model, _openings(tuple((first, 4) for first in range(3, 7))))
    assert several < alone


def test_batches_leave_room_for_what_follows_each_prompt(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny("llama"))
    longest = max(map(len, model.token_ids(PROMPTS.texts)))
    monkeypatch.setattr("probes.attribution.shares.differentiable_tokens", lambda _: 4 * longest)
    assert max(len(batch.indices) for batch in PROMPTS.batches(model, None)) >= 3
    assert max(len(batch.indices) for batch in PROMPTS.batches(model, None, following=longest)) == 2


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
