"""What a pass back holds at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp import HookedModel, load
from interp.pairs.weight_path import WeightPath
from probes.attribution import memory
from probes.attribution.integrated_gradients import attribute
from probes.attribution.sign_flips import sign_flips
from probes.margin.openings import Openings
from probes.margin.refusal_margin import refusal_margin
from tests.attributed import MARGIN, PROMPTS, noisy


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
    monkeypatch.setattr("interp.memory.SMALLEST", 0)
    assert memory.differentiable_tokens(model) == pytest.approx(tokens * weights / 2 / 2**28, abs=1)
    monkeypatch.setattr("probes.attribution.shares.differentiable_tokens", lambda _: 1)
    assert len(PROMPTS.batches(model, None)) == len(PROMPTS.texts)
    assert len(PROMPTS.batches(model, 64)) == 1


def test_blocks_of_rows_change_no_sum(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix in blocks of a few rows, and whole."""
    baseline, cell = load(tiny("llama")), noisy(tiny("llama"))
    found, flips = [], []
    for size in (memory.BLOCK, 70):
        monkeypatch.setattr(memory, "BLOCK", size)
        found.append(attribute(baseline, cell, PROMPTS, MARGIN, steps=2, max_steps=2, group_size=5))
        flips.append(sign_flips(WeightPath(baseline, cell), PROMPTS, MARGIN, draws=3))
    assert [block.start for block in memory.row_blocks(torch.zeros(4, 35))] == [0, 2]
    whole, blocks = found
    for name in ("rows", "columns", "vectors", "groups", "parameters"):
        sums, expected = getattr(blocks, name), getattr(whole, name)
        assert sums.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(sums[key], expected[key], rtol=1e-6, atol=1e-8)
    for moments in ("first_order", "variance"):
        for name in ("rows", "columns", "others"):
            sums, expected = (getattr(getattr(each, moments), name) for each in reversed(flips))
            for key in expected:
                torch.testing.assert_close(sums[key], expected[key], rtol=1e-6, atol=1e-12)
    for key, drawn in flips[0].drawn.items():
        torch.testing.assert_close(flips[1].drawn[key], drawn, rtol=1e-6, atol=1e-8)
