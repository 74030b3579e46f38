"""Blocks with a recurrence in place of attention beside blocks with attention, against the parts written out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu

from interp import load, open_checkpoint
from interp.errors import InputError
from interp.formats.names import architecture_of
from interp.pairs.alignment import aligned
from interp.pairs.weight_error import check_pair, recovered_scales, weight_error
from interp.pairs.weight_path import WeightPath
from probes import neurons
from probes.attribution.parts import Part, Parts
from probes.attribution.settings import PartKind
from probes.causal.rankings import contrast_scores
from probes.neurons.settings import Site
from probes.neurons.weight_errors import safety_units
from tests.cells import HARMFUL, HARMLESS
from tests.packed_files import edit, gptq_copy
from tests.tiny_models import HYBRIDS, MIXTURES, TEXTS, bare_model

Tiny = Callable[[str], Path]
INPUTS = {
    "qwen3_next": ("in_proj_qkvz", "in_proj_ba"),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")),
}
"""The linears that read the first norm in a block with a recurrence."""
RECURRENT = (0, 2)


def changed(source: Path, out: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A copy of a tiny checkpoint with other tensors."""
    return edit(Path(shutil.copytree(source, out)), change)


@pytest.mark.parametrize("name", HYBRIDS)
def test_what_attention_adds_is_the_projection_of_its_heads(name: str, tiny: Tiny) -> None:
    model = load(tiny(name))
    for block in range(3):
        linear = "linear_attn.out_proj" if block in RECURRENT else "self_attn.o_proj"
        z, added = model.activations(TEXTS, [f"blocks.{block}.attn.hook_z", f"blocks.{block}.hook_attn_out"]).values()
        assert z.shape[1:] == ((6, 16) if block in RECURRENT else (4, 12))
        weight = model.checkpoint.weight(f"model.layers.{block}.{linear}")
        torch.testing.assert_close(z.flatten(1) @ weight.T, added, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HYBRIDS)
def test_texts_in_a_batch_are_single_texts_whichever_side_the_pads_are_on(name: str, tiny: Tiny) -> None:
    """Ours are padded on the right; a bare model, as it is generated from, on the left."""
    model, bare = load(tiny(name)), bare_model(name)
    residual = [f"blocks.{block}.hook_resid_post" for block in range(3)]
    together = model.activations(TEXTS, residual)
    alone = [model.activations(text, residual) for text in TEXTS]
    prompts = model.token_ids(TEXTS)
    width = max(map(len, prompts))
    ids = torch.tensor([[5] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    seen: dict[int, Tensor] = {}
    for block, layer in enumerate(bare.model.layers):
        layer.register_forward_hook(lambda _, __, output, block=block: seen.update({block: output[:, -1]}))
    with torch.no_grad():
        bare(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for block, point in enumerate(residual):
        single = torch.cat([acts[point] for acts in alone])
        torch.testing.assert_close(together[point], single, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(together[point], seen[block], rtol=1e-5, atol=2e-6)


def gated(x: Tensor, weight: Callable[[str], Tensor]) -> Tensor:
    """An expert's MLP of one token."""
    return weight("down_proj") @ (silu(weight("gate_proj") @ x) * (weight("up_proj") @ x))


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe_text"])
def test_the_mixture_is_that_of_the_experts_and_of_the_one_that_all_share(name: str, tiny: Tiny) -> None:
    model, checkpoint = load(tiny(name)), open_checkpoint(tiny(name))
    points = ("hook_resid_mid", "mlp.hook_expert_weights", "mlp.hook_expert_indices", "hook_mlp_out")
    mid, weights, indices, added = model.activations(TEXTS, [f"blocks.2.{point}" for point in points]).values()
    with torch.no_grad():
        inputs = model.hf.model.layers[2].post_attention_layernorm(mid)
    mlp = "model.layers.2.mlp"
    for x, shares, taken, ours in zip(inputs, weights, indices, added, strict=True):
        expected = torch.sigmoid(checkpoint.weight(f"{mlp}.shared_expert_gate") @ x) * gated(
            x, lambda linear: checkpoint.weight(f"{mlp}.shared_expert.{linear}")
        )
        for share, expert in zip(shares, taken.int().tolist(), strict=True):
            expected += share * gated(x, lambda linear, e=expert: checkpoint.weight(f"{mlp}.experts.{e}.{linear}"))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HYBRIDS)
def test_an_error_is_told_of_its_linear(name: str, tiny: Tiny, tmp_path: Path) -> None:
    linears = ["model.layers.0.linear_attn.out_proj", f"model.layers.2.linear_attn.{INPUTS[name][0]}"]
    of_experts = ("shared_expert.up_proj", "experts.3.gate_proj") if name in MIXTURES else ()
    linears += [f"model.layers.2.mlp.{linear}" for linear in of_experts]
    before = load_file(tiny(name) / "model.safetensors")
    noise = {f"{linear}.weight": 0.1 * torch.randn_like(before[f"{linear}.weight"]) for linear in linears}
    noise = {key: 0.1 * before[key].std() * value for key, value in noise.items()}
    cell = changed(tiny(name), tmp_path / "cell", lambda tensors: [tensors[key].add_(noise[key]) for key in noise])
    table = weight_error(tiny(name), cell)
    assert set(table.module) == set(open_checkpoint(tiny(name)).linears())
    assert set(table[table.rms_error > 0].module) == {*linears}
    for linear in linears:
        own, key = table[table.module == linear], f"{linear}.weight"
        relative = noise[key].double().square().mean(1).sqrt() / before[key].double().square().mean(1).sqrt()
        torch.testing.assert_close(torch.tensor(own.relative_error.to_numpy()), relative, rtol=1e-4, atol=0)


def rescaled(tensors: dict[str, Tensor]) -> None:
    """AWQ's factors, across both norms of each block and between the last two linears of each MLP.

    The norms multiply by 1 + weight.
    """
    generator = torch.Generator().manual_seed(3)
    for block in range(3):
        prefix = f"model.layers.{block}."
        for norm, readers in {
            "input_layernorm": ("q_proj", "k_proj", "v_proj", *INPUTS["qwen3_next"], *INPUTS["qwen3_5_text"]),
            "post_attention_layernorm": ("gate_proj", "up_proj", "mlp.gate", "shared_expert_gate"),
        }.items():
            factors = torch.exp(0.7 * torch.randn(32, generator=generator))
            weight = tensors[f"{prefix}{norm}.weight"]
            weight.copy_((1 + weight) / factors - 1)
            for key in tensors:
                if key.startswith(prefix) and key.removesuffix(".weight").endswith(readers):
                    tensors[key] *= factors
        for key in [k for k in tensors if k.startswith(prefix) and k.endswith("up_proj.weight")]:
            own = torch.exp(0.7 * torch.randn(len(tensors[key]), generator=generator))
            tensors[key] /= own[:, None]
            tensors[key.replace("up_proj", "down_proj")] *= own


@pytest.mark.parametrize("name", HYBRIDS)
def test_scales_that_awq_moved_are_undone(name: str, tiny: Tiny, tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(4)

    def change(tensors: dict[str, Tensor]) -> None:
        for key in [k for k in tensors if "_proj" in k]:
            tensors[key] += 0.01 * tensors[key].std() * torch.randn(tensors[key].shape, generator=noise)
        rescaled(tensors)

    baseline, cell = load(tiny(name)), load(changed(tiny(name), tmp_path / "cell", change))
    scales = recovered_scales(baseline.checkpoint, cell.checkpoint)
    assert scales.warnings == []
    assert len(scales.norms) == 6
    for block in RECURRENT:
        assert {f"model.layers.{block}.linear_attn.{linear}" for linear in INPUTS[name]} <= set(scales.inputs)
    assert weight_error(baseline.checkpoint, cell.checkpoint).relative_error.median() < 0.02
    expected = cell.logits(TEXTS)
    with aligned(cell, baseline):
        torch.testing.assert_close(cell.logits(TEXTS), expected, rtol=1e-3, atol=1e-3)
        ours, theirs = (
            m.hf.get_parameter(f"model.layers.0.linear_attn.{INPUTS[name][0]}.weight") for m in (cell, baseline)
        )
        assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_units_of_blocks_of_both_kinds(tiny: Tiny, tmp_path: Path) -> None:
    """A head's reading error is that of its own columns, and no linear alone writes a recurrence's head."""
    source = tiny("qwen3_5_text")
    cell = gptq_copy(source, tmp_path / "cell")
    assert check_pair(source, cell) == []
    baseline, quantized = load(source), load(cell)
    result = neurons.measure(baseline, {"gptq": quantized}, HARMFUL, HARMLESS, template="none")
    table = safety_units(result, baseline.checkpoint, {"gptq": quantized.checkpoint}).table
    heads = table[table.site == Site.HEAD]
    assert {*heads.layer} == {1, 2}
    for row in heads.itertuples():
        recurrent = row.layer in RECURRENT
        linear = f"model.layers.{row.layer}.{'linear_attn.out_proj' if recurrent else 'self_attn.o_proj'}"
        width = 16 if recurrent else 12
        columns = slice(row.unit * width, (row.unit + 1) * width)
        before, after = (m.checkpoint.weight(linear)[:, columns].double() for m in (baseline, quantized))
        assert row.read_error == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
        assert (row.write_error != row.write_error) == recurrent


def test_what_cannot_be_asked_of_a_hybrid_is_told(tiny: Tiny) -> None:
    mixture, dense = load(tiny("qwen3_next")), load(tiny("qwen3_5_text"))
    with pytest.raises(InputError, match="A qwen3_next model is a mixture of experts"):
        WeightPath(mixture, mixture)
    parts = Parts.of(dense)
    assert {part.layer for part in parts.every(PartKind.HEAD)} == {1}
    with pytest.raises(InputError, match="Layer 0 of this qwen3_5_text model has a recurrence"):
        parts.slices(Part(PartKind.HEAD, 0, 1))
    contrasts = contrast_scores(dense, PartKind.HEAD, HARMFUL.instructions, HARMLESS.instructions)
    assert list(contrasts) == parts.every(PartKind.HEAD)
    queries = parts.slices(Part(PartKind.HEAD, 1, 1))[0]
    assert (queries.linear, queries.start, queries.stop) == ("model.layers.1.self_attn.q_proj", 24, 48)  # and its gate


@pytest.mark.parametrize(
    ("gguf", "experts"), [("qwen3next", True), ("qwen35", False), ("qwen35moe", True), ("", False), ("", True)]
)
def test_a_gguf_of_a_hybrid_is_refused_by_name(gguf: str, experts: bool) -> None:
    with pytest.raises(InputError, match=f"The architecture '{gguf}' of model.gguf.* is not supported"):
        architecture_of(Path("model.gguf"), gguf, experts)


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_kind_of_block_that_there_is_not(name: str, tiny: Tiny, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny(name), tmp_path / "copy"))
    settings = json.loads((copy / "config.json").read_text())
    kinds = ["linear_attention", "sliding_attention", "linear_attention"]
    (copy / "config.json").write_text(json.dumps(settings | {"layer_types": kinds}))
    with pytest.raises(InputError, match=r"blocks of the kind 'sliding_attention' \(layer_types\)"):
        open_checkpoint(copy)
