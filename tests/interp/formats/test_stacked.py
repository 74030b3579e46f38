"""All experts of a block in one tensor: gpt-oss, dense or in MXFP4, other mixtures as their models have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp import load, open_checkpoint
from interp.errors import InputError
from interp.pairs.weight_error import check_pair, weight_error
from tests.packed_files import e2m1, edit, gptq_copy
from tests.tiny_models import MIXTURES, TEXTS, bare_model, write

Tiny = Callable[[str], Path]
PREFIX = "model.layers.{}.mlp.experts."


def packed(shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
    """Random blocks and scales of [experts, out, in]."""
    random = np.random.default_rng(seed)
    experts, n_out, n_in = shape
    blocks = random.integers(0, 256, (experts, n_out, n_in // 32, 16)).astype(np.uint8)
    scales = random.integers(118, 126, (experts, n_out, n_in // 32)).astype(np.uint8)
    return {"blocks": torch.from_numpy(blocks), "scales": torch.from_numpy(scales)}


def write_mxfp4(source: Path, directory: Path) -> Path:
    """The tiny model with its experts in random MXFP4, under the names of the released files."""
    shutil.copytree(source, directory)
    tensors = load_file(directory / "model.safetensors")
    for number, name in enumerate([n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]):
        experts, n_in, n_out = tensors.pop(name).shape
        tensors |= {f"{name}_{k}": tensor for k, tensor in packed((experts, n_out, n_in), number).items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_each_expert_of_a_dense_file(tiny: Tiny) -> None:
    checkpoint, bare = open_checkpoint(tiny("gpt_oss")), bare_model("gpt_oss")
    assert checkpoint.warnings == []
    assert len(checkpoint.linears()) == 3 * (4 + 4 * 2)
    for block in range(3):
        experts = bare.model.layers[block].mlp.experts
        for expert in range(4):
            prefix = f"{PREFIX.format(block)}{expert}."
            assert torch.equal(checkpoint.weight(f"{prefix}gate_up_proj"), experts.gate_up_proj[expert].T)
            assert torch.equal(checkpoint.weight(f"{prefix}down_proj"), experts.down_proj[expert].T)
    assert checkpoint.bits_per_weight() == 32


def test_the_mixture_written_out(tiny: Tiny) -> None:
    """Gates and ups stand in turns; both are clamped, and 1 is added to the ups."""
    model, checkpoint = load(tiny("gpt_oss")), open_checkpoint(tiny("gpt_oss"))
    names = [f"blocks.1.{p}" for p in ("hook_resid_mid", "mlp.hook_expert_weights", "mlp.hook_expert_indices")]
    mid, weights, indices, added = model.activations(TEXTS, [*names, "blocks.1.hook_mlp_out"]).values()
    biases = {kind: checkpoint.tensor(f"{PREFIX.format(1)}{kind}_proj_bias") for kind in ("gate_up", "down")}
    for text in range(len(TEXTS)):
        x = model.hf.model.layers[1].post_attention_layernorm(mid[text])
        total = torch.zeros(32)
        for weight, expert in zip(weights[text], indices[text].int().tolist(), strict=True):
            prefix = f"{PREFIX.format(1)}{expert}."
            both = checkpoint.weight(f"{prefix}gate_up_proj") @ x + biases["gate_up"][expert]
            gate, up = both[::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
            neurons = (up + 1) * gate * torch.sigmoid(1.702 * gate)
            total += weight * (checkpoint.weight(f"{prefix}down_proj") @ neurons + biases["down"][expert])
        torch.testing.assert_close(total, added[text], rtol=1e-4, atol=1e-5)


def test_mxfp4_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    directory = write_mxfp4(tiny("gpt_oss"), tmp_path / "cell")
    checkpoint, stored = open_checkpoint(directory), load_file(directory / "model.safetensors")
    assert (checkpoint.format, checkpoint.quantization["bits"], checkpoint.warnings) == ("mxfp4", 4, [])
    experts = [name for name in checkpoint.linears() if ".experts." in name]
    assert [name for name in checkpoint.linears() if checkpoint.is_quantized(name)] == experts
    assert {checkpoint.linear_bits(name) for name in experts} == {4.25}
    model = load(directory)
    for block in range(3):
        for kind in ("gate_up_proj", "down_proj"):
            blocks, scales = (stored[f"{PREFIX.format(block)}{kind}_{part}"] for part in ("blocks", "scales"))
            theirs = convert_moe_packed_tensors(blocks, scales)
            assert torch.equal(model.hf.get_parameter(f"{PREFIX.format(block)}{kind}"), theirs.float())
            for expert in range(4):
                weight = checkpoint.tensor(f"{PREFIX.format(block)}{expert}.{kind}.weight")
                assert weight.dtype == torch.bfloat16
                numbers = e2m1(blocks[expert].flatten(1).numpy())
                powers = np.exp2(scales[expert].numpy().astype(np.float32) - 127)
                assert np.array_equal(weight.float().numpy(), numbers * np.repeat(powers, 32, axis=1))
    assert model.logits(TEXTS).isfinite().all()


def test_exports_are_stacked_again(tiny: Tiny, tmp_path: Path) -> None:
    source = write_mxfp4(tiny("gpt_oss"), tmp_path / "cell")
    open_checkpoint(source).export(tmp_path / "dense", shard_gb=2e-5)
    assert len([*(tmp_path / "dense").glob("*.safetensors")]) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    ours = load(source).hf
    for name, parameter in ours.named_parameters():
        assert torch.equal(theirs.get_parameter(name), parameter), name
    assert weight_error(source, tmp_path / "dense").rms_error.max() == 0
    assert check_pair(tmp_path / "dense", source) == []


def nan_scale(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX.format(2)}down_proj_scales"][3, 5, 0] = 255


def no_scales(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{PREFIX.format(2)}down_proj_scales"]


def narrow_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX.format(2)}down_proj_scales"] = tensors[f"{PREFIX.format(2)}down_proj_scales"][:, :, :1].clone()


def flat_blocks(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX.format(2)}down_proj_blocks"] = tensors[f"{PREFIX.format(2)}down_proj_blocks"].flatten(2)


def three_experts(tensors: dict[str, Tensor]) -> None:
    for part in ("blocks", "scales"):
        tensors[f"{PREFIX.format(2)}down_proj_{part}"] = tensors[f"{PREFIX.format(2)}down_proj_{part}"][:3].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_scale, r"experts\.3\.down_proj\.scales' of .* has the byte 255, which is NaN"),
        (no_scales, r"experts\.0\.down_proj\.scales' is missing"),
        (narrow_scales, r"experts\.0\.down_proj\.scales' of .* has shape \[32, 1\]"),
        (flat_blocks, r"experts\.down_proj_blocks' of .* has the shape \[4, 32, 32\]"),
        (three_experts, r"experts\.down_proj_blocks' of .* has the shape \[3, 32, 2, 16\].*Expected 4 experts"),
    ],
)
def test_damage_is_named(change: Any, message: str, tiny: Tiny, tmp_path: Path) -> None:
    directory = edit(write_mxfp4(tiny("gpt_oss"), tmp_path / "cell"), change)
    with pytest.raises(InputError, match=message):
        load(directory)


def test_a_name_with_braces_is_a_name(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("gpt_oss"), tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(file)
    old = f"{PREFIX.format(0)}down_proj"
    save_file({name.replace(old, "{a{.experts.down_proj"): t for name, t in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / "copy")


@pytest.mark.parametrize("name", sorted({*MIXTURES} - {"gpt_oss"}))
def test_stacked_experts_are_those_of_files_that_hold_them_apart(name: str, tiny: Tiny, tmp_path: Path) -> None:
    source = write(name, tmp_path / "stacked", stacked=True)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(source / "model.safetensors")
    apart, stacked = open_checkpoint(tiny(name)), open_checkpoint(source)
    assert (stacked.warnings, stacked.bits_per_weight()) == ([], apart.bits_per_weight())
    assert (stacked.names(), stacked.linears()) == (apart.names(), apart.linears())
    for key in apart.names():
        assert torch.equal(stacked.tensor(key), apart.tensor(key)), key
    bare = bare_model(name)
    for key, parameter in load(source).hf.named_parameters():
        assert torch.equal(parameter, bare.get_parameter(key)), key
    stacked.export(tmp_path / "dense", shard_gb=2e-5)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    for key, parameter in bare.named_parameters():
        assert torch.equal(theirs.get_parameter(key), parameter), key
    assert check_pair(source, tmp_path / "dense") == []


def test_a_packed_copy_of_stacked_experts(tiny: Tiny, tmp_path: Path) -> None:
    """Quantizers pack each expert's linears apart."""
    baseline = write("qwen3_5_moe_text", tmp_path / "stacked", stacked=True)
    cell = gptq_copy(tiny("qwen3_5_moe_text"), tmp_path / "cell")
    checkpoint, dense = open_checkpoint(cell), load_file(baseline / "model.safetensors")
    assert (checkpoint.format, check_pair(baseline, cell)) == ("gptq", [])
    table = weight_error(baseline, cell)
    for expert, (part, linear) in product(range(5), enumerate(("gate_proj", "up_proj"))):
        name = f"{PREFIX.format(2)}{expert}.{linear}"
        assert checkpoint.is_quantized(name)
        before = dense[f"{PREFIX.format(2)}gate_up_proj"][expert, 24 * part : 24 * (part + 1)].double()
        error = (checkpoint.weight(name).double() - before).square().mean(1).sqrt()
        own = torch.tensor(table[table.module == name].rms_error.to_numpy())
        assert error.min() > 0
        torch.testing.assert_close(own, error, rtol=1e-5, atol=0)
    checkpoint.export(tmp_path / "dense")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    for key, parameter in load(cell).hf.named_parameters():
        assert torch.equal(theirs.get_parameter(key), parameter), key


GATES_AND_UPS, DOWNS = (f"{PREFIX.format(1)}{kind}" for kind in ("gate_up_proj", "down_proj"))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (DOWNS, lambda t: t.flatten(1), r"down_proj' of .* has the shape \[5, 768\].*Expected 3 dimensions"),
        (DOWNS, lambda t: None, r"experts\.0\.down_proj\.weight' is missing"),
        (DOWNS, lambda t: t[:4], r"down_proj' of .* has the shape \[4, 32, 24\].*Expected 5 experts, as config.json"),
        (DOWNS, lambda t: t[[0, 1, 2, 3, 4, 4]], r"\[6, 32, 24\].*Expected 5 experts, as config.json"),
        (DOWNS, lambda t: t.transpose(1, 2), r"experts\.0\.down_proj\.weight' of .* has shape \[24, 32\]"),
        (DOWNS, lambda t: t.int(), r"experts\.0\.down_proj\.weight' of .* has the type torch\.int32"),
        (DOWNS, lambda t: torch.zeros(10**9, 0, 24), r"\[1000000000, 0, 24\].*Expected at most 2048 experts"),
        (GATES_AND_UPS, lambda t: t[:, :47], r"\[5, 47, 32\].*as many rows for each of gate_proj, up_proj"),
        (GATES_AND_UPS, lambda t: t[:, :46], r"experts\.0\.gate_proj\.weight' of .* has shape \[23, 32\]"),
        (f"{PREFIX.format(1)}3.up_proj.weight", lambda t: torch.ones(24, 32), r"is part of .*gate_up_proj' of"),
    ],
)
def test_damage_of_gates_and_ups_is_named(
    key: str, change: Callable[[Tensor | None], Tensor | None], message: str, tmp_path: Path
) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        if (damaged := change(tensors.pop(key, None))) is not None:
            tensors[key] = damaged.contiguous()

    directory = edit(write("qwen3_5_moe_text", tmp_path, stacked=True), damage)
    with pytest.raises(InputError, match=message):
        open_checkpoint(directory)
