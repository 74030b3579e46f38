"""Cells in their baseline's coordinates, against rescalings made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp import HookedModel, load
from interp.pairs.alignment import aligned
from probes.attribution.parts import Part, Parts
from probes.attribution.settings import PartKind
from probes.causal.exchange import swapped_weights
from tests.exchanges import HARMFUL, noisy
from tests.tiny_models import tokenizer

NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def rescaled(cell: HookedModel, out: Path, mistake: float = 1.0) -> HookedModel:
    """A checkpoint of the same function with AWQ's factors in its tensors; `mistake`: by which one channel's factors do
    not cancel."""
    generator = torch.Generator().manual_seed(5)

    def factors(n: int) -> torch.Tensor:
        return torch.exp(0.7 * torch.randn(n, generator=generator))

    for layer in cell.hf.model.layers:
        for norm, consumers in NORMS.items():
            s = factors(32)
            layer.get_submodule(norm).weight /= s
            for name in consumers:
                layer.get_submodule(name).weight *= s
        s = factors(48)
        layer.mlp.up_proj.weight /= s[:, None]
        s[::2] *= mistake
        layer.mlp.down_proj.weight *= s
        s = factors(16)
        layer.self_attn.v_proj.weight /= s[:, None]
        layer.self_attn.o_proj.weight *= s.view(2, 1, 8).expand(2, 2, 8).flatten()
    cell.hf.save_pretrained(out)
    tokenizer().save_pretrained(out)
    return load(out)


def small_noise(model: HookedModel) -> HookedModel:
    cell = noisy(model, everything=False)
    for (_, ours), (_, theirs) in zip(model.hf.named_parameters(), cell.hf.named_parameters(), strict=True):
        theirs.copy_(ours + 0.1 * (theirs - ours))
    return cell


@pytest.mark.parametrize("mistake", [1.0, 1.4])
def test_the_same_function_and_the_same_bits_afterwards(
    tiny: Callable[[str], Path], tmp_path: Path, mistake: float
) -> None:
    baseline = load(tiny("llama"))
    cell = rescaled(small_noise(baseline), tmp_path, mistake)
    before, expected = {k: v.clone() for k, v in cell.hf.state_dict().items()}, cell.logits(HARMFUL)

    def compared() -> None:
        with aligned(cell, baseline) as scales:
            assert len(scales.inputs) == 3 * 7
            torch.testing.assert_close(cell.logits(HARMFUL), expected, rtol=1e-4, atol=1e-4)
            for name, parameter in cell.hf.named_parameters():
                reference = baseline.hf.get_parameter(name)
                error = (parameter - reference).norm() / reference.norm()
                assert error < (0.2 if mistake == 1.0 else 0.6), name
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        compared()
    assert all(torch.equal(before[name], tensor) for name, tensor in cell.hf.state_dict().items())


def test_a_restored_neuron_is_the_one_restored_by_hand(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Its slices in the cell's own coordinates: gate and up rows times the norm's factor, up and down by their own."""
    baseline = load(tiny("llama"))
    cell = rescaled(small_noise(baseline), tmp_path)
    part, parts = Part(PartKind.NEURON, 1, 7), Parts.of(baseline)
    with aligned(cell, baseline) as scales, swapped_weights(cell, baseline, parts, [part]):
        restored = cell.logits(HARMFUL)
    mlp, reference = cell.hf.model.layers[1].mlp, baseline.hf.model.layers[1].mlp
    norm = baseline.hf.model.layers[1].post_attention_layernorm.weight
    s = norm / cell.hf.model.layers[1].post_attention_layernorm.weight
    u = scales.inputs["model.layers.1.mlp.down_proj"][7]
    before = cell.logits(HARMFUL)
    mlp.gate_proj.weight[7] = reference.gate_proj.weight[7] * s
    mlp.up_proj.weight[7] = reference.up_proj.weight[7] * s / u
    mlp.down_proj.weight[:, 7] = reference.down_proj.weight[:, 7] * u
    torch.testing.assert_close(restored, cell.logits(HARMFUL), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(restored, before, rtol=1e-4, atol=1e-4)


def test_ups_in_one_matrix_with_gates(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """AWQ divides the last rows of Phi-3's fused matrix, which are the ups, and leaves the gates."""
    baseline = load(tiny("phi3"))
    cell = small_noise(baseline)
    factors = torch.exp(0.7 * torch.randn(48, generator=torch.Generator().manual_seed(5)))
    for layer in cell.hf.model.layers:
        layer.mlp.gate_up_proj.weight[48:] /= factors[:, None]
        layer.mlp.down_proj.weight *= factors
    cell.hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    cell = load(tmp_path)
    expected, parts = cell.logits(HARMFUL), Parts.of(baseline)
    with aligned(cell, baseline) as scales:
        for layer in range(3):
            rows = scales.outputs[f"model.layers.{layer}.mlp.gate_up_proj"]
            assert (rows[:48] == 1).all()
            torch.testing.assert_close(rows[48:], factors, rtol=0.05, atol=0)
            columns = scales.inputs[f"model.layers.{layer}.mlp.down_proj"]
            torch.testing.assert_close(columns, rows[48:])
        torch.testing.assert_close(cell.logits(HARMFUL), expected, rtol=1e-4, atol=1e-4)
        error = cell.hf.model.layers[1].mlp.gate_up_proj.weight - baseline.hf.model.layers[1].mlp.gate_up_proj.weight
        assert error.norm() < 0.2 * baseline.hf.model.layers[1].mlp.gate_up_proj.weight.norm()
        with swapped_weights(cell, baseline, parts, parts.every(PartKind.LAYER)):
            assert torch.equal(
                cell.hf.model.layers[0].mlp.gate_up_proj.weight, baseline.hf.model.layers[0].mlp.gate_up_proj.weight
            )


def test_real_awq(fixtures: Path) -> None:
    baseline, cell = load(fixtures / "fp16"), load(fixtures / "autoawq_gemm")
    expected, parts = cell.logits(HARMFUL), Parts.of(baseline)
    everything = [*parts.every(PartKind.LAYER), *parts.every(PartKind.OTHER)]
    with aligned(cell, baseline) as scales:
        assert scales.inputs
        torch.testing.assert_close(cell.logits(HARMFUL), expected, rtol=1e-3, atol=1e-3)
        with swapped_weights(cell, baseline, parts, everything):
            assert torch.equal(cell.logits(HARMFUL), baseline.logits(HARMFUL))
    assert torch.equal(cell.logits(HARMFUL), expected)


def test_models_made_in_memory_are_left_alone(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    with aligned(noisy(baseline), baseline) as scales:
        assert not {**scales.inputs, **scales.outputs, **scales.norms}
