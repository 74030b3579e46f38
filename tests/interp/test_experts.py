"""Mixtures of experts: each expert's weights and each token's choice, against the mixture written out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu

from interp import HookedModel, load, open_checkpoint
from interp.checkpoint import Checkpoint
from interp.dequantize.settings import ExportDtype
from interp.dequantize.write import export
from interp.errors import InputError
from interp.pairs.alignment import aligned
from interp.pairs.weight_error import check_pair, recovered_scales, weight_error
from interp.pairs.weight_path import WeightPath, block_linears
from interp.quantize.mixed_precision import whole_groups
from probes.attribution.parts import Parts
from tests.packed_files import dense, edit, gptq_tensors, random_linear, write_packed
from tests.tiny_models import TEXTS, bare_model, tokenizer, write

Tiny = Callable[[str], Path]
MIXTURES = ("mixtral", "qwen3_moe", "olmoe")
LINEARS = {
    "mixtral": ("w1", "w3", "w2"),
    **dict.fromkeys(("qwen3_moe", "olmoe"), ("gate_proj", "up_proj", "down_proj")),
}
"""An expert's gate, up and down projection as its files call them."""
TAKEN = {"mixtral": 2, "qwen3_moe": 2, "olmoe": 3}
COUNT = {"mixtral": 4, "qwen3_moe": 5, "olmoe": 6}


def weights_of(checkpoint: Checkpoint, name: str, block: int, expert: int) -> list[Tensor]:
    return [checkpoint.weight(f"model.layers.{block}.mlp.experts.{expert}.{linear}") for linear in LINEARS[name]]


def mixture(checkpoint: Checkpoint, name: str, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """What the experts of block 2 add for one token, [d]."""
    added = torch.zeros_like(x)
    for weight, expert in zip(weights, indices.tolist(), strict=True):
        gate, up, down = weights_of(checkpoint, name, 2, int(expert))
        added += weight * (down @ (silu(gate @ x) * (up @ x)))
    return added


@pytest.mark.parametrize("name", MIXTURES)
def test_the_mixture_is_that_of_the_choice_and_of_each_experts_weights(name: str, tiny: Tiny) -> None:
    model = load(tiny(name))
    checkpoint = open_checkpoint(tiny(name))
    points = ["hook_resid_mid", *(f"mlp.hook_{p}" for p in ("router_logits", "expert_weights", "expert_indices"))]
    names = [f"blocks.2.{point}" for point in (*points, "hook_mlp_out")]
    mid, logits, weights, indices, added = model.activations(TEXTS, names).values()
    assert (weights.shape, indices.shape, logits.shape) == (*[(5, TAKEN[name])] * 2, (5, COUNT[name]))
    with torch.no_grad():
        inputs = model.hf.model.layers[2].post_attention_layernorm(mid)
    router = checkpoint.tensor("model.layers.2.mlp.gate.weight")
    torch.testing.assert_close(inputs @ router.T, logits, rtol=1e-5, atol=1e-5)
    probabilities = logits.softmax(-1)
    taken, expected = probabilities.topk(TAKEN[name])
    assert torch.equal(indices, expected.float())
    shares = taken if name == "olmoe" else taken / taken.sum(-1, keepdim=True)
    torch.testing.assert_close(weights, shares)
    for text in range(len(TEXTS)):
        ours = mixture(checkpoint, name, inputs[text], weights[text], indices[text])
        torch.testing.assert_close(ours, added[text], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_names_and_numbers_are_those_of_the_files(name: str, tiny: Tiny) -> None:
    stored = load_file(tiny(name) / "model.safetensors")
    checkpoint = open_checkpoint(tiny(name))
    assert checkpoint.warnings == []
    assert {n.replace(".mlp.", ".block_sparse_moe.") if name == "mixtral" else n for n in checkpoint.names()} == {
        *stored
    }
    for key in checkpoint.names():
        there = key.replace(".mlp.", ".block_sparse_moe.") if name == "mixtral" else key
        assert torch.equal(checkpoint.tensor(key), stored[there])
    blocks = 2 if name == "qwen3_moe" else 3
    assert len([n for n in checkpoint.linears() if ".experts." in n]) == blocks * 3 * COUNT[name]
    assert len([n for n in checkpoint.linears() if ".self_attn." in n]) == 12


def changed(source: Path, out: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A copy of a tiny checkpoint with other tensors."""
    out.mkdir()
    for file in source.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return edit(out, change)


def test_an_error_is_told_of_its_expert(tiny: Tiny, tmp_path: Path) -> None:
    source, expert = tiny("mixtral"), "model.layers.1.block_sparse_moe.experts.3.w2"
    before = load_file(source / "model.safetensors")[f"{expert}.weight"]
    noise = 0.1 * before.std() * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    cell = changed(source, tmp_path / "cell", lambda tensors: tensors[f"{expert}.weight"].add_(noise))
    table = weight_error(source, cell)
    damaged = table[table.rms_error > 0]
    assert set(damaged.module) == {"model.layers.1.mlp.experts.3.w2"}
    relative = noise.double().square().mean(1).sqrt() / before.double().square().mean(1).sqrt()
    torch.testing.assert_close(torch.tensor(damaged.relative_error.to_numpy()), relative, rtol=1e-4, atol=0)
    assert set(table.module) == set(open_checkpoint(source).linears())


@pytest.mark.parametrize("name", MIXTURES)
def test_an_exported_mixture_is_read_by_transformers(name: str, tiny: Tiny, tmp_path: Path) -> None:
    export(open_checkpoint(tiny(name)), tmp_path / "dense", ExportDtype.EXACT)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    for key, parameter in bare_model(name).named_parameters():
        assert torch.equal(theirs.get_parameter(key), parameter), key
    assert check_pair(tiny(name), tmp_path / "dense") == []


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe"])
def test_packed_experts(name: str, tmp_path: Path) -> None:
    def pack(n_in: int, n_out: int) -> dict[str, Tensor]:
        return gptq_tensors(*random_linear(n_in, n_out, 8, 4, seed=n_in), 4, 1)

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False, "desc_act": False}
    checkpoint = open_checkpoint(write_packed(tmp_path, pack, settings | {"checkpoint_format": "gptq"}, name))
    model = load(tmp_path)
    assert not checkpoint.warnings
    assert all(map(checkpoint.is_quantized, checkpoint.linears()))
    down = model.hf.get_parameter("model.layers.2.mlp.experts.down_proj")
    for expert in range(COUNT[name]):
        weight = checkpoint.weight(f"model.layers.2.mlp.experts.{expert}.down_proj", torch.float16)
        assert torch.equal(weight, dense(*random_linear(down.shape[2], 32, 8, 4, seed=down.shape[2])))
        assert torch.equal(down[expert], weight.float())


def rescaled(tensors: dict[str, Tensor]) -> None:
    """AWQ's factors: across the norm before router and experts, and between ups and downs of each expert."""
    generator = torch.Generator().manual_seed(3)
    for block in range(3):
        prefix = f"model.layers.{block}."
        factors = torch.exp(0.7 * torch.randn(32, generator=generator))
        tensors[f"{prefix}post_attention_layernorm.weight"] /= factors
        for key, tensor in tensors.items():
            if key.startswith(f"{prefix}mlp.") and key.endswith(("gate.weight", "gate_proj.weight", "up_proj.weight")):
                tensor *= factors
        for key in [k for k in tensors if k.startswith(f"{prefix}mlp.experts") and k.endswith("up_proj.weight")]:
            own = torch.exp(0.7 * torch.randn(len(tensors[key]), generator=generator))
            tensors[key] /= own[:, None]
            tensors[key.replace("up_proj", "down_proj")] *= own


def test_scales_that_awq_moved_into_experts_are_undone(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny("olmoe")
    noise = torch.Generator().manual_seed(4)

    def change(tensors: dict[str, Tensor]) -> None:
        for key in [k for k in tensors if "_proj" in k]:
            tensors[key] += 0.01 * tensors[key].std() * torch.randn(tensors[key].shape, generator=noise)
        rescaled(tensors)

    baseline, cell = load(source), load(changed(source, tmp_path / "cell", change))
    scales = recovered_scales(baseline.checkpoint, cell.checkpoint)
    assert scales.warnings == []
    assert len([name for name in scales.outputs if ".experts." in name]) == 3 * 6
    table = weight_error(baseline.checkpoint, cell.checkpoint)
    assert table.relative_error.median() < 0.02
    expected, before = cell.logits(TEXTS), {k: v.clone() for k, v in cell.hf.state_dict().items()}
    with aligned(cell, baseline):
        torch.testing.assert_close(cell.logits(TEXTS), expected, rtol=1e-3, atol=1e-4)
        ours, theirs = (m.hf.model.layers[1].mlp.experts.gate_up_proj for m in (cell, baseline))
        assert (ours - theirs).norm() < 0.05 * theirs.norm()
    assert all(torch.equal(before[key], tensor) for key, tensor in cell.hf.state_dict().items())


def run(model: HookedModel, changes: dict[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    with model.intervene(changes):
        return model.activations(TEXTS, ["blocks.2.hook_mlp_out", "blocks.2.hook_resid_mid"])


@pytest.mark.parametrize("name", MIXTURES)
def test_the_choice_of_experts_can_be_changed(name: str, tiny: Tiny) -> None:
    model, checkpoint = load(tiny(name)), open_checkpoint(tiny(name))
    silent = run(model, {"blocks.2.mlp.hook_expert_weights": torch.zeros_like})
    assert not silent["blocks.2.hook_mlp_out"].any()
    order = torch.arange(TAKEN[name]) + 1
    shares = torch.linspace(0.5, 1.5, TAKEN[name])
    acts = run(
        model,
        {
            "blocks.2.mlp.hook_expert_indices": lambda indices: order.expand_as(indices).clone(),
            "blocks.2.mlp.hook_expert_weights": lambda weights: shares.expand_as(weights).clone(),
        },
    )
    with torch.no_grad():
        inputs = model.hf.model.layers[2].post_attention_layernorm(acts["blocks.2.hook_resid_mid"])
    for text in range(len(TEXTS)):
        expected = mixture(checkpoint, name, inputs[text], shares, order)
        torch.testing.assert_close(acts["blocks.2.hook_mlp_out"][text], expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_asked_of_experts_is_told(tiny: Tiny) -> None:
    model = load(tiny("mixtral"))
    with pytest.raises(InputError, match=r"no hook 'blocks\.0\.mlp\.hook_post'.*neurons of other experts"):
        model.activations(TEXTS, ["blocks.0.mlp.hook_post"])
    with pytest.raises(InputError, match=r"Nothing is computed from blocks\.0\.mlp\.hook_router_logits"):
        run(model, {"blocks.0.mlp.hook_router_logits": torch.zeros_like})
    for asked in (lambda: Parts.of(model), lambda: WeightPath(model, model), lambda: block_linears(model)):
        with pytest.raises(InputError, match="A mixtral model is a mixture of experts"):
            asked()


def test_gates_and_ups_of_one_expert_are_kept_together(tiny: Tiny) -> None:
    row = open_checkpoint(tiny("olmoe")).architecture
    up, gate = (f"model.layers.1.mlp.experts.4.{kind}_proj" for kind in ("up", "gate"))
    assert whole_groups([up], row) == [up, gate]


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.experts.2.up_proj.weight", "model.layers.0.mlp.gate.weight"])
def test_an_expert_that_is_missing_is_named(lost: str, tiny: Tiny, tmp_path: Path) -> None:
    cell = changed(tiny("olmoe"), tmp_path / "cell", lambda tensors: tensors.pop(lost))
    with pytest.raises(InputError, match=f"'{lost}' is missing"):
        open_checkpoint(cell)


def test_a_file_of_other_experts_than_the_config_says(tiny: Tiny, tmp_path: Path) -> None:
    def narrower(tensors: dict[str, Tensor]) -> None:
        key = "model.layers.1.mlp.experts.2.up_proj.weight"
        tensors[key] = tensors[key][:40].clone()

    with pytest.raises(InputError, match=r"experts\.2\.up_proj\.weight' of .* has shape \[40, 32\]"):
        open_checkpoint(changed(tiny("olmoe"), tmp_path / "cell", narrower))


@pytest.mark.parametrize(
    ("name", "key", "count"),
    [
        ("qwen3_moe", "num_local_experts", 10**9),
        ("gpt_oss", "num_local_experts", 10**9),
        ("qwen3_moe", "num_local_experts", "five"),
        ("olmoe", "num_experts_per_tok", 7),
        ("mixtral", "num_experts_per_tok", 0),
    ],
)
def test_numbers_of_experts_that_cannot_be(name: str, key: str, count: object, tiny: Tiny, tmp_path: Path) -> None:
    cell = Path(shutil.copytree(tiny(name), tmp_path / "cell"))
    settings = json.loads((cell / "config.json").read_text())
    assert key in settings
    (cell / "config.json").write_text(json.dumps(settings | {key: count}))
    with pytest.raises(InputError, match=f"= {count!r}"):
        open_checkpoint(cell)


def test_batches_of_a_mixture_are_its_single_texts(tmp_path: Path) -> None:
    write("qwen3_moe", tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path)
    together = model.logits(TEXTS)
    alone = torch.stack([model.logits(text)[0] for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
