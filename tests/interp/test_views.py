"""TransformerLens and nnsight views: on the same weights, without a network, leaving the loaded model as it was."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp import HookedModel, load
from interp.errors import InputError, MissingExtra
from tests.tiny_models import DISTINCT, TEXTS, tokenizer

CELLS = ["fp16", "autoawq_gemm", "autoawq_gemv", "compressed_w4a16", "gptqmodel_v1", "gptqmodel_v2_act"]
Snapshot = dict[str, Any]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a view reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def snapshot(model: HookedModel) -> Snapshot:
    """Everything a view could have changed."""
    return {
        "logits": model.logits(TEXTS),
        "activations": model.activations(TEXTS, model.hook_names),
        "state": {key: (tensor.data_ptr(), tensor.clone()) for key, tensor in model.hf.state_dict().items()},
        "buffers": {key: tensor.clone() for key, tensor in model.hf.named_buffers()},
        "modules": {key: type(module) for key, module in model.hf.named_modules()},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()),
        "config": model.config.to_dict() | {"attention": model.config._attn_implementation},
        "tokenizer": (model.tokenizer.padding_side, model.tokenizer.special_tokens_map, model.token_ids(TEXTS)),
        "requires_grad": [parameter.requires_grad for parameter in model.hf.parameters()],
    }


def assert_same(before: Any, after: Any, where: str) -> None:
    if isinstance(before, dict):
        assert list(before) == list(after), where
        for key, value in before.items():
            assert_same(value, after[key], f"{where} {key}")
    elif isinstance(before, Tensor):
        assert torch.equal(before, after), where
    elif isinstance(before, tuple):
        assert_same(dict(enumerate(before)), dict(enumerate(after)), where)
    else:
        assert before == after, where


def use_transformer_lens(model: HookedModel) -> Tensor:
    bridge = model.to_transformer_lens()
    ids = torch.tensor(model.token_ids(TEXTS[:1]))
    bridge.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_post", lambda resid, hook: resid * 2)])
    logits, cache = bridge.run_with_cache(ids)
    assert_close(cache["blocks.1.hook_resid_post"][0, -1], model.activations(TEXTS[:1], ["blocks.1.hook_resid_post"]))
    return logits


def use_nnsight(model: HookedModel) -> Tensor:
    view = model.to_nnsight()
    ids = torch.tensor(model.token_ids(TEXTS[:1]))
    with view.trace(ids):
        view.get(model.architecture.final_norm).output[:] = 0
        view.lm_head.output.save()
    with view.trace(TEXTS[0]):  # through nnsight's own tokenization
        resid = view.get(f"{model.architecture.blocks}.1").output.save()
        logits = view.lm_head.output.save()
    resid = resid[0] if isinstance(resid, tuple) else resid
    assert_close(resid.reshape(-1, resid.shape[-1])[-1], model.activations(TEXTS[:1], ["blocks.1.hook_resid_post"]))
    return logits


def assert_close(theirs: Tensor, ours: dict[str, Tensor]) -> None:
    (value,) = ours.values()
    assert (value[0] - theirs).abs().max() <= 1e-5 * value.abs().max()


@pytest.mark.parametrize("use", [use_transformer_lens, use_nnsight])
@pytest.mark.parametrize("name", DISTINCT)
def test_a_view_leaves_the_loaded_model_as_it_was(
    name: str, use: Callable[[HookedModel], Tensor], tiny: Callable[[str], Path]
) -> None:
    model = load(tiny(name))
    before = snapshot(model)
    use(model)
    assert_same(before, snapshot(model), name)


@pytest.mark.parametrize("use", [use_transformer_lens, use_nnsight])
@pytest.mark.parametrize("cell", CELLS)
def test_cells_of_every_format_have_views(cell: str, use: Callable[[HookedModel], Tensor], fixtures: Path) -> None:
    model = load(fixtures / cell)
    before = snapshot(model)
    logits = use(model)[0, -1]
    assert (logits - before["logits"][0]).abs().max() <= 1e-5 * before["logits"][0].abs().max()
    assert_same(before, snapshot(model), cell)


@pytest.mark.parametrize("use", [use_transformer_lens, use_nnsight])
def test_a_gguf_has_views(use: Callable[[HookedModel], Tensor], tiny: Callable[[str], Path], tmp_path: Path) -> None:
    import gguf

    from tests.gguf_files import write_gguf

    dense = load(tiny("mistral"))
    state = dict(dense.hf.state_dict())
    path = write_gguf(tmp_path / "cell.gguf", state, dense.config, "llama", gguf.GGMLQuantizationType.Q8_0)
    model = load(path, like=tiny("mistral"))
    before = snapshot(model)
    logits = use(model)[0, -1]
    assert (logits - before["logits"][0]).abs().max() <= 1e-5 * before["logits"][0].abs().max()
    assert_same(before, snapshot(model), "gguf")


@pytest.mark.parametrize("view", ["to_transformer_lens", "to_nnsight"])
@pytest.mark.parametrize("name", DISTINCT)
def test_views_share_storage(name: str, view: str, tiny: Callable[[str], Path]) -> None:
    """Every weight of the loaded model is in the view; the bridge adds its own split of fused q, k and v."""
    model = load(tiny(name))
    opened = getattr(model, view)()
    hf = opened.original_model if view == "to_transformer_lens" else opened._module
    shared = {parameter.data_ptr() for parameter in hf.parameters()}
    assert {parameter.data_ptr() for parameter in model.hf.parameters()} <= shared


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_done_to_a_view_stays_in_the_view(name: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    before = snapshot(model)
    model.to_transformer_lens().enable_compatibility_mode()  # folds norms into weights and centres them
    model.to_transformer_lens().original_model.half()
    model.to_nnsight()._module.half().requires_grad_(True)
    assert_same(before, snapshot(model), name)


def test_a_view_cannot_be_opened_inside_an_intervention(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    with model.intervene({"hook_embed": torch.zeros_like}):
        for view in (model.to_transformer_lens, model.to_nnsight):
            with pytest.raises(InputError, match="with block"):
                view()


@pytest.mark.parametrize(("package", "view"), [("transformer_lens", "to_transformer_lens"), ("nnsight", "to_nnsight")])
def test_a_package_that_is_not_installed_is_named(
    package: str, view: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"quantscope\[lens\]"):
        getattr(load(tiny("llama")), view)()


def unlike(change: str) -> PreTrainedTokenizerFast:
    """A tokenizer that lacks something or has been changed in memory."""
    own = tokenizer(adds_bos=change != "adds no BOS")
    if change == "lacks special tokens":
        own.bos_token = own.pad_token = None
    if change == "has settings that are no plain data":
        own.init_kwargs["unk_token"] = AddedToken("<unk>", special=True)
    if change == "was added to":
        own.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    return own


@pytest.mark.parametrize(
    "change", ["adds no BOS", "lacks special tokens", "has settings that are no plain data", "was added to"]
)
def test_the_bridge_keeps_the_tokenizer(change: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    model.tokenizer = unlike(change)
    before = (model.tokenizer.get_vocab(), model.token_ids(TEXTS))
    bridge = model.to_transformer_lens()
    assert bridge.tokenizer.get_vocab() == before[0]
    assert bridge.tokenizer(TEXTS).input_ids == model.tokenizer(TEXTS).input_ids
    bos = model.tokenizer.bos_token_id
    if bos is not None:
        assert bridge.to_tokens(TEXTS[0])[0].tolist() == [bos, *(t for t in before[1][0] if t != bos)]
    assert (model.tokenizer.get_vocab(), model.token_ids(TEXTS)) == before


def test_a_real_gptqmodel_cell_has_views(fixtures: Path) -> None:
    """Its tokenizer's init arguments hold an AddedToken."""
    model = load(fixtures / "gptqmodel_bf16_norms" / "quantized")
    for use in (use_transformer_lens, use_nnsight):
        logits = use(model)[0, -1]
        expected = model.logits(TEXTS[:1])[0]
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
