"""The null of an attribution against every weight's own product, drawn signs and smaller memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp import HookedModel, load
from interp.pairs.weight_path import WeightPath
from probes.attribution.cell import MarginObjective
from probes.attribution.parts import Parts
from probes.attribution.settings import PartKind
from probes.attribution.sign_flips import sign_flips
from probes.margin.openings import Openings
from tests.attributed import MARGIN, PROMPTS, noisy

Tiny = Callable[[str], Path]


def products(baseline: HookedModel, cell: HookedModel, side: int) -> dict[str, Tensor]:
    """g·Δ of every weight for a side's mean margin, by autograd with all gradients at once."""
    assert baseline.checkpoint is not None
    model = load(baseline.checkpoint.path)
    model.hf.requires_grad_()
    chosen = PROMPTS.side == side
    for batch in PROMPTS.batches(model, None):
        (MARGIN(model, batch) * chosen[batch.indices] / chosen.sum()).sum().backward()
    end = dict(cell.hf.named_parameters())
    return {n: (p.grad * (end[n] - p)).detach().double() for n, p in model.hf.named_parameters()}


@pytest.mark.parametrize("name", ["llama", "phi", "gpt2"])
def test_moments_against_whole_gradients(tiny: Tiny, name: str) -> None:
    baseline, cell = load(tiny(name)), noisy(tiny(name))
    null = sign_flips(WeightPath(baseline, cell), PROMPTS, MARGIN, draws=0)
    tied = [n for n, _ in baseline.hf.named_parameters(remove_duplicate=False) if n == "lm_head.weight"]
    for side in (0, 1):
        expected = products(baseline, cell, side)
        if name == "gpt2":  # its unembedding is its embedding, and the two uses have lines of their own
            del expected["transformer.wte.weight"]
            assert tied
        for parameter, values in expected.items():
            first, second = (m.parameter(parameter)[side] for m in (null.first_order, null.variance))
            torch.testing.assert_close(first, values.sum(), rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(second, values.square().sum(), rtol=1e-3, atol=1e-9)
    parts = Parts.of(baseline)
    turned = {
        n: v.T if baseline.architecture.conv1d and v.ndim == 2 else v for n, v in products(baseline, cell, 0).items()
    }
    for kind in (PartKind.HEAD, PartKind.NEURON, PartKind.LAYER, PartKind.MODULE):
        for part in parts.every(kind)[::5]:
            first, second = 0.0, 0.0
            for piece in parts.slices(part):
                pieces = [piece.of(turned[f"{piece.linear}.weight"])]
                if piece.has_bias and f"{piece.linear}.bias" in turned:
                    pieces.append(turned[f"{piece.linear}.bias"][piece.start : piece.stop])
                first += sum(piece.share * values.sum().item() for values in pieces)
                second += sum(piece.share**2 * values.square().sum().item() for values in pieces)
            assert null.first_order.part(part)[0].item() == pytest.approx(first, rel=1e-3, abs=1e-6)
            assert null.variance.part(part)[0].item() == pytest.approx(second, rel=1e-3, abs=1e-9)


def test_drawn_signs_have_the_variance(tiny: Tiny) -> None:
    """150 drawn flips of each of 24 parameters and two sides: the ratio's standard error is below 0.02."""
    null = sign_flips(WeightPath(load(tiny("llama")), noisy(tiny("llama"))), PROMPTS, MARGIN, draws=150)
    assert null.drawn_variance_ratio() == pytest.approx(1, abs=0.08)
    name = "model.layers.1.mlp.up_proj.weight"
    assert null.drawn[name].mean(1).abs().max() < 5 * (null.variance.parameter(name) / 150).sqrt().max()


def test_little_memory_changes_nothing(tiny: Tiny) -> None:
    path = WeightPath(load(tiny("phi")), noisy(tiny("phi")))
    whole, pieces = (sign_flips(path, PROMPTS, MARGIN, budget=budget) for budget in (2**30, 5000))
    for name in whole.drawn:
        torch.testing.assert_close(pieces.variance.parameter(name), whole.variance.parameter(name))
        torch.testing.assert_close(pieces.drawn[name], whole.drawn[name])


def test_no_change_has_no_null(tiny: Tiny) -> None:
    null = sign_flips(WeightPath(load(tiny("llama")), load(tiny("llama"))), PROMPTS, MARGIN)
    assert null.drawn == {}
    assert null.drawn_variance_ratio() != null.drawn_variance_ratio()


def test_several_passes_over_one_batch_add_up(tiny: Tiny) -> None:
    """An open hook makes the margin take a pass for each path of the openings, in each of which a linear flows."""
    baseline, cell = load(tiny("llama")), noisy(tiny("llama"))
    path = WeightPath(baseline, cell)
    (batch,) = PROMPTS.batches(baseline, None)
    openings = Openings(((3, 4), (5, 6), (7, 8)), "test", ("",) * 3, (0,) * 3, (0.0,) * 3)
    objective = MarginObjective(openings)
    assert objective.in_one_pass(baseline, batch)
    together = sign_flips(path, PROMPTS, objective, draws=0)
    with baseline.intervene({"hook_embed": lambda value: value}):
        assert not objective.in_one_pass(baseline, batch)
        in_turn = sign_flips(path, PROMPTS, objective, draws=0)
    for moments in ("first_order", "variance"):
        ours, expected = (getattr(null, moments).rows for null in (in_turn, together))
        for linear in expected:
            torch.testing.assert_close(ours[linear], expected[linear], rtol=1e-3, atol=1e-8)
