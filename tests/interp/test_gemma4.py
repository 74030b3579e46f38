"""Gemma 4: a third term in each block, a number that multiplies the residual stream, and sizes that differ."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Gemma4TextConfig

from interp import HookedModel, load, open_checkpoint
from interp.architectures import architecture
from interp.checkpoint import Checkpoint
from interp.errors import InputError
from interp.formats.names import architecture_of
from interp.pairs.alignment import aligned
from interp.pairs.weight_error import check_pair, recovered_scales, weight_error
from probes import neurons
from probes.attribution.parts import Part
from probes.attribution.settings import PartKind
from probes.causal.exchange import Aim
from probes.causal.settings import By
from probes.neurons.settings import Site
from probes.neurons.weight_errors import safety_units
from tests.cells import HARMFUL, HARMLESS
from tests.exchanges import interventions
from tests.packed_files import edit, gptq_copy
from tests.tiny_models import TEXTS, bare_model, tokenizer

Tiny = Callable[[str], Path]
BLOCK = "blocks.1."


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> HookedModel:
    return load(tiny("gemma4_text"))


def tokens(model: HookedModel) -> Tensor:
    return torch.tensor([model.token_ids(TEXTS)[2]])


def run(model: HookedModel, changes: dict[str, Callable[[Tensor], Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad(), model.intervene(changes), model.capture(model.hook_names) as acts:
        return model.hf(tokens(model)).logits, acts


def test_the_third_term_is_that_of_the_tokens_embedding(model: HookedModel) -> None:
    """Written out from the weights of the files, for the first block."""
    tensor = model.checkpoint.tensor
    _, acts = run(model, {})
    ids, embedded = tokens(model)[0], acts["hook_embed"][0]

    def normed(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * tensor(f"model.{name}.weight")

    projected = embedded @ tensor("model.per_layer_model_projection.weight").T * 32**-0.5
    of_context = normed(projected.view(-1, 3, 6)[:, 0], "per_layer_projection_norm")
    of_token = tensor("model.embed_tokens_per_layer.weight")[ids].view(-1, 3, 6)[:, 0] * 6**0.5
    after_mlp = (acts["blocks.0.hook_resid_mid"] + acts["blocks.0.hook_mlp_out"])[0]
    gate = torch.nn.functional.gelu(
        after_mlp @ tensor("model.layers.0.per_layer_input_gate.weight").T, approximate="tanh"
    )
    mixed = gate * (of_context + of_token) * 2**-0.5
    third = normed(mixed @ tensor("model.layers.0.per_layer_projection.weight").T, "layers.0.post_per_layer_input_norm")
    torch.testing.assert_close(acts["blocks.0.hook_layer_input_out"][0], third, rtol=1e-4, atol=1e-5)
    scalar = tensor("model.layers.0.layer_scalar")
    torch.testing.assert_close(scalar, torch.full((1,), 0.8))
    torch.testing.assert_close(acts["blocks.0.hook_resid_post"][0], (after_mlp + third) * scalar, rtol=1e-4, atol=1e-5)


def test_a_new_resid_mid_is_as_if_attention_had_added_it(model: HookedModel) -> None:
    shift = torch.randn(32, generator=torch.Generator().manual_seed(1))
    _, before = run(model, {})
    mid = before[f"{BLOCK}hook_resid_mid"] * 0.5 + shift
    logits, acts = run(model, {f"{BLOCK}hook_resid_mid": lambda resid: resid * 0.5 + shift})
    added = mid - before[f"{BLOCK}hook_resid_pre"]
    expected, others = run(model, {f"{BLOCK}hook_attn_out": lambda _: added})
    assert torch.equal(acts[f"{BLOCK}hook_resid_mid"], mid)
    for point in ("hook_mlp_out", "hook_layer_input_out", "hook_resid_post"):
        torch.testing.assert_close(acts[f"{BLOCK}{point}"], others[f"{BLOCK}{point}"], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(acts[f"{BLOCK}{point}"], before[f"{BLOCK}{point}"], rtol=1e-2)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_interventions_at_one_block_compose(model: HookedModel) -> None:
    with (
        model.intervene({f"{BLOCK}hook_resid_post": lambda resid: resid * 2}),
        model.intervene({f"{BLOCK}hook_layer_input_out": torch.ones_like}),
        model.intervene({f"{BLOCK}hook_mlp_out": torch.ones_like}),
        model.intervene({f"{BLOCK}hook_resid_mid": lambda resid: torch.full_like(resid, 5.0)}),
        model.intervene({f"{BLOCK}hook_resid_mid": lambda resid: resid + 1}),
    ):
        _, acts = run(model, {})
    post = acts[f"{BLOCK}hook_resid_post"]
    torch.testing.assert_close(post, torch.full_like(post, 2 * 0.8 * (6 + 1 + 1)))


def test_without_the_third_term(tmp_path: Path) -> None:
    """The larger models have none of it, and their blocks are multiplied all the same."""
    bare = bare_model("gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=0)
    bare.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path)
    assert not [name for name in model.hook_names if "layer_input" in name]
    shift = torch.ones(32)
    for change in ({}, {f"{BLOCK}hook_resid_mid": lambda resid: resid + shift}):
        _, acts = run(model, change)
        mid, mlp, post = (acts[f"{BLOCK}hook_{point}"] for point in ("resid_mid", "mlp_out", "resid_post"))
        torch.testing.assert_close((mid + mlp) * 0.8, post)
    with torch.no_grad():
        torch.testing.assert_close(run(model, {})[0], bare(tokens(model)).logits)


def test_hooks_see_whole_prompts_when_it_generates(model: HookedModel) -> None:
    """transformers lets the blocks that have no keys of their own see the last token alone, if it may."""
    widths: dict[str, list[int]] = {"blocks.0.hook_resid_post": [], "blocks.2.hook_resid_post": []}
    for name, seen in widths.items():
        model.generate(TEXTS[2], 2, hooks=[(name, lambda value, seen=seen: seen.append(value.shape[1]))])
    length = len(model.token_ids(TEXTS)[2])
    assert widths == {name: [length, 1] for name in widths}


def test_several_batches_take_one_read(tiny: Tiny, model: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    tensor = Checkpoint.tensor

    def counted(self: Checkpoint, name: str, dtype: torch.dtype | None = None) -> Tensor:
        reads[name] += 1
        return tensor(self, name, dtype)

    streamed = load(tiny("gemma4_text"), stream=True)
    monkeypatch.setattr(Checkpoint, "tensor", counted)
    logits, cache = streamed.run_with_cache(TEXTS, position=-1, batch_size=2)
    assert reads.pop("model.embed_tokens.weight") == 2  # it is the unembedding, too
    assert set(reads.values()) == {1}
    assert "model.embed_tokens_per_layer.weight" in reads
    expected, expected_cache = model.run_with_cache(TEXTS, position=-1, batch_size=2)
    assert torch.equal(logits, expected)
    assert all(torch.equal(cache[name], expected_cache[name]) for name in expected_cache)


def test_scales_that_awq_moved_are_undone(tiny: Tiny, tmp_path: Path, model: HookedModel) -> None:
    """Across the norms, whose weights are what they multiply by, and from ups to downs; not from values to heads."""
    generator = torch.Generator().manual_seed(3)

    def rescaled(tensors: dict[str, Tensor]) -> None:
        for key in [k for k in tensors if "_proj" in k and k.endswith("weight")]:
            tensors[key] += 0.01 * tensors[key].std() * torch.randn(tensors[key].shape, generator=generator)
        for block in range(3):
            prefix = f"model.layers.{block}."
            readers = {"input_layernorm": "q_proj k_proj v_proj", "pre_feedforward_layernorm": "gate_proj up_proj"}
            for norm, linears in readers.items():
                factors = torch.exp(0.7 * torch.randn(32, generator=generator))
                tensors[f"{prefix}{norm}.weight"] /= factors
                for key in tensors:
                    if key.startswith(prefix) and key.removesuffix(".weight").endswith(tuple(linears.split())):
                        tensors[key] *= factors
            own = torch.exp(0.7 * torch.randn(len(tensors[f"{prefix}mlp.up_proj.weight"]), generator=generator))
            tensors[f"{prefix}mlp.up_proj.weight"] /= own[:, None]
            tensors[f"{prefix}mlp.down_proj.weight"] *= own

    cell = load(edit(Path(shutil.copytree(tiny("gemma4_text"), tmp_path / "cell")), rescaled))
    scales = recovered_scales(model.checkpoint, cell.checkpoint)
    assert scales.warnings == []
    assert {name.rpartition(".")[2] for name in scales.outputs} == {"up_proj"}
    table = weight_error(model.checkpoint, cell.checkpoint)
    assert set(table.module) == set(model.checkpoint.linears())
    assert table.relative_error.median() < 0.02
    expected = cell.logits(TEXTS)
    with aligned(cell, model):
        torch.testing.assert_close(cell.logits(TEXTS), expected, rtol=1e-3, atol=1e-3)


def test_what_writes_and_what_reads_a_dimension(tiny: Tiny, tmp_path: Path, model: HookedModel) -> None:
    """The third term's linears do, too."""
    path = gptq_copy(tiny("gemma4_text"), tmp_path / "cell")
    cell = load(path)
    result = neurons.measure(model, {"cell": cell}, HARMFUL, HARMLESS, template="none", sites=[Site.RESID])
    table = safety_units(result, model.checkpoint, {"cell": cell.checkpoint}).table
    (row,) = table[table.layer == 1].itertuples()

    def relative(linears: list[str], index: Any) -> float:
        before, after = (
            torch.cat([m.checkpoint.weight(f"model.layers.{linear}")[index].double().flatten() for linear in linears])
            for m in (model, cell)
        )
        return float((after - before).norm() / before.norm())

    outputs = ("self_attn.o_proj", "mlp.down_proj", "per_layer_projection")
    inputs = ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "per_layer_input_gate")
    written = relative([f"{block}.{linear}" for block in (0, 1) for linear in outputs], row.unit)
    assert row.write_error == pytest.approx(written, rel=1e-5)
    assert row.read_error == pytest.approx(
        relative([f"2.{linear}" for linear in inputs], (slice(None), row.unit)), rel=1e-5
    )


def test_another_scalar_is_another_model(tiny: Tiny, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny("gemma4_text"), tmp_path / "cell"))
    assert check_pair(tiny("gemma4_text"), copy) == []
    edit(copy, lambda tensors: tensors["model.layers.1.layer_scalar"].mul_(1.5))
    with pytest.raises(InputError, match=r"model\.layers\.1\.layer_scalar"):
        check_pair(tiny("gemma4_text"), copy)
    assert "model.layers.1.layer_scalar" in load_file(copy / "model.safetensors")


def test_what_layers_add_is_not_exchanged(model: HookedModel, tiny: Tiny) -> None:
    exchanged = interventions(model, load(tiny("gemma4_text")), TEXTS)
    with pytest.raises(InputError, match=r"blocks that only add to the residual stream.*\(layer_scalar\)"):
        exchanged.margins(Aim.RESTORE, By.ACTIVATIONS, [Part(PartKind.LAYER, 1)])
    for part in (Part(PartKind.HEAD, 2, 1), Part(PartKind.NEURON, 2, 70)):
        same = exchanged.margins(Aim.RESTORE, By.ACTIVATIONS, [part])
        torch.testing.assert_close(same, exchanged.unchanged(Aim.RESTORE)[0])


@pytest.mark.parametrize(("key", "value"), [("enable_moe_block", True), ("use_bidirectional_attention", "all")])
def test_settings_that_are_refused(key: str, value: Any, tiny: Tiny, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny("gemma4_text"), tmp_path / "copy"))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {key: value}))
    with pytest.raises(InputError, match=f"a gemma4_text model with {key} = {value!r}"):
        open_checkpoint(copy)


def test_a_gguf_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"The architecture 'gemma4' of model\.gguf is not supported"):
        architecture_of(Path("model.gguf"), "gemma4")


def test_sizes_of_blocks_as_older_files_have_them() -> None:
    """Google's files give one number for all blocks that attend to everything."""
    config = Gemma4TextConfig(num_hidden_layers=6, head_dim=8, global_head_dim=16)
    assert [block.head_dim for block in config.per_layer_config] == [8] * 5 + [16]
    assert architecture("gemma4_text").expanded(config).scalar == "layer_scalar"
