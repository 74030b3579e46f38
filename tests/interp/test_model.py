"""`load` against `from_pretrained`, and batches against one text at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from interp import HookedModel, complete, load, open_checkpoint
from interp.architectures import architecture
from interp.chat import render
from interp.errors import InputError, NotFinite
from interp.loading import empty_model, fill
from interp.quantize.write import gguf_f16
from interp.running_stats import RunningStats
from interp.surroundings import own_surroundings
from tests.gguf_files import write_gguf
from tests.tiny_models import CONFIGS, CONTEXT, TEXTS, tokenizer, write
from tests.writer_models import write_checkpoint

RESID = "blocks.1.hook_resid_post"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny(name))


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


def assert_close(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


# ── load ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equals_from_pretrained(model: HookedModel, name: str, tiny: Callable[[str], Path]) -> None:
    bare = AutoModelForCausalLM.from_pretrained(tiny(name), dtype=torch.float32)
    ours, theirs = model.hf.state_dict(), bare.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    ours, theirs = dict(model.hf.named_buffers()), dict(bare.named_buffers())
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
        assert ours[key].dtype == tensor.dtype, key
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert model.n_layers == 3


def test_ties_are_kept(model: HookedModel) -> None:
    tied = model.hf.get_output_embeddings().weight is model.hf.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_dtype_throughout(model: HookedModel, name: str, tiny: Callable[[str], Path], dtype: torch.dtype) -> None:
    half = load(tiny(name), dtype=dtype)
    assert {parameter.dtype for parameter in half.hf.parameters()} == {dtype}
    assert half.hf.dtype == half.config.dtype == dtype
    for key, tensor in model.hf.state_dict().items():
        assert torch.equal(half.hf.state_dict()[key], tensor.to(dtype)), key
    bare = AutoModelForCausalLM.from_pretrained(tiny(name), dtype=dtype)
    for parameter in bare.parameters():
        parameter.data = parameter.data.to(dtype)  # of gpt-oss transformers leaves the norms in float32
    ids = torch.tensor(model.token_ids(TEXTS[:1]))
    with torch.no_grad():
        assert torch.equal(half.hf(ids).logits, bare(ids).logits)
    assert half.logits(TEXTS).dtype == torch.float32


def test_default_dtype_on_the_cpu_is_float32_and_loses_nothing(tmp_path: Path) -> None:
    stored = load_file(write("llama", tmp_path, torch.float16) / "model.safetensors")
    model = load(tmp_path)
    assert model.checkpoint is not None
    assert (model.hf.dtype, model.checkpoint.compute_dtype) == (torch.float32, torch.float16)
    for key, tensor in stored.items():
        assert torch.equal(model.hf.state_dict()[key].half(), tensor), key


def test_editing_the_model_leaves_its_checkpoint_as_it_was(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"), dtype=torch.float32)
    assert model.checkpoint is not None
    before = {name: model.checkpoint.tensor(name).clone() for name in model.checkpoint.names()}
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.zero_()
    assert all(torch.equal(model.checkpoint.tensor(name), tensor) for name, tensor in before.items())


def test_generation_config_is_kept(tmp_path: Path) -> None:
    write("llama", tmp_path)
    GenerationConfig(max_new_tokens=17, eos_token_id=[1, 5]).save_pretrained(tmp_path)
    kept = load(tmp_path).hf.generation_config
    assert (kept.max_new_tokens, kept.eos_token_id) == (17, [1, 5])


def test_no_parameter_is_initialized_and_no_second_copy_of_the_weights_is_made(tiny: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    hf = empty_model(checkpoint.config, torch.float16)
    assert all(parameter.is_meta for parameter in hf.parameters())
    read: list[weakref.ref[Tensor]] = []

    def tensor(name: str) -> Tensor:
        assert all(reference() is None for reference in read[:-1]), (
            "the tensors before the last one are still in memory"
        )
        full = checkpoint.tensor(name)
        read.append(weakref.ref(full))
        return full

    counting: Any = SimpleNamespace(
        names=checkpoint.names, tensor=tensor, path="x", architecture=checkpoint.architecture
    )
    fill(hf, counting, torch.float16, lambda _: CPU)
    assert len(read) == len(checkpoint.names())
    assert not any(parameter.is_meta for parameter in hf.parameters())


def fill_llama(change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Fill a tiny Llama from a checkpoint that somebody changed."""
    from tests.tiny_models import bare_model

    tensors = dict(bare_model("llama").state_dict())
    change(tensors)
    checkpoint: Any = SimpleNamespace(
        architecture=architecture("llama"), path="here", names=lambda: list(tensors), tensor=lambda name: tensors[name]
    )
    fill(empty_model(CONFIGS["llama"](), torch.float32), checkpoint, torch.float32, lambda _: CPU)


def test_every_tensor_must_be_accounted_for() -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    fill_llama(lambda tensors: None)
    with pytest.raises(InputError, match=f"here has no tensor for {key}"):
        fill_llama(lambda tensors: tensors.pop(key))
    with pytest.raises(InputError, match=r"no place for the tensor model\.layers\.1\.mlp\.extra"):
        fill_llama(lambda tensors: tensors.update({"model.layers.1.mlp.extra": torch.ones(1)}))
    with pytest.raises(InputError, match=rf"{key} has shape \(3, 3\).*\(48, 32\)"):
        fill_llama(lambda tensors: tensors.update({key: torch.ones(3, 3)}))
    fill_llama(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))


def test_a_device_map_places_every_module(tiny: Callable[[str], Path], llama: HookedModel) -> None:
    assert torch.equal(
        load(tiny("llama"), dtype=torch.float32, device_map={"": "cpu"}).logits(TEXTS), llama.logits(TEXTS)
    )
    with pytest.raises(InputError, match="does not fit"):
        load(tiny("llama"), device_map={"model": "cpu", "lm_head": "disk"})


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    write("llama", tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        load(tmp_path)
    assert load(tmp_path, like=tiny("llama")).token_ids(["x"]) == load(tiny("llama")).token_ids(["x"])


def gguf_of(directory: Path, model: HookedModel) -> Path:
    state = dict(model.hf.state_dict())
    return write_gguf(directory / "model.gguf", state, model.config, "llama", gguf.GGMLQuantizationType.F32)


def test_a_gguf_takes_its_surroundings_from_the_baseline(
    tmp_path: Path, llama: HookedModel, tiny: Callable[[str], Path]
) -> None:
    model = load(gguf_of(tmp_path, llama), like=tiny("llama"))
    assert model.checkpoint is not None
    assert model.checkpoint.format == "gguf"
    assert torch.equal(model.logits(TEXTS, chat=True), llama.logits(TEXTS, chat=True))


def test_a_gguf_of_our_own_needs_no_baseline_and_a_folder_with_one_is_that_file(tmp_path: Path) -> None:
    source = write_checkpoint("llama", tmp_path / "model")
    file = gguf_f16(source, tmp_path / "F16")
    expected = load(source)
    for given in (file, file.parent):
        model = load(given)
        assert model.checkpoint is not None
        assert model.checkpoint.path == file
        torch.testing.assert_close(model.logits(TEXTS, chat=True), expected.logits(TEXTS, chat=True))
    assert torch.equal(load(file.parent, like=file.parent).logits(TEXTS, chat=True), model.logits(TEXTS, chat=True))


def test_a_gguf_of_which_transformers_makes_another_model_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint("llama", tmp_path / "model")
    scaled = open_checkpoint(gguf_f16(source, tmp_path / "F16"))
    said = scaled.metadata()
    scaled.metadata = lambda: said | {"rope.freq_base": 9000.0}  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"another model of the metadata.*rope\.freq_base.*--like"):
        own_surroundings(scaled)


def test_a_baseline_of_another_architecture_is_refused(
    tmp_path: Path, llama: HookedModel, tiny: Callable[[str], Path]
) -> None:
    with pytest.raises(InputError, match=r"is a llama model and its baseline .* is a qwen2 model"):
        load(gguf_of(tmp_path, llama), like=tiny("qwen2"))


def test_a_gguf_whose_metadata_is_not_enough_asks_for_the_baseline(tmp_path: Path, llama: HookedModel) -> None:
    with pytest.raises(InputError, match="like=baseline"):
        load(gguf_of(tmp_path, llama))


@pytest.mark.parametrize(
    "cell", ["fp16", "autoawq_gemm", "autoawq_gemv", "compressed_w4a16", "gptqmodel_v1", "gptqmodel_v2_act"]
)
def test_real_cells_get_their_dense_weights(fixtures: Path, cell: str) -> None:
    model = load(fixtures / cell)
    checkpoint = open_checkpoint(fixtures / cell)
    assert getattr(model.config, "quantization_config", None) is None
    for linear in checkpoint.linears():
        module = model.hf.get_submodule(linear)
        assert type(module) is torch.nn.Linear
        assert torch.equal(module.weight, checkpoint.weight(linear)), linear
    assert model.logits(["Hello"]).isfinite().all()


def test_import_is_cheap() -> None:
    code = "import interp, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── activations and logits ────────────────────────────────────────────────────────────────────────────────────────────


def test_padding_never_changes_a_result(model: HookedModel) -> None:
    together = model.activations(TEXTS, model.hook_names)
    logits = model.logits(TEXTS)
    for which, text in enumerate(TEXTS):
        alone = model.activations([text], model.hook_names)
        for point in model.hook_names:
            assert_close(together[point][which], alone[point][0])
        assert_close(logits[which], model.logits([text])[0])


def test_equals_the_bare_model(model: HookedModel, name: str, tiny: Callable[[str], Path]) -> None:
    bare = AutoModelForCausalLM.from_pretrained(tiny(name), dtype=torch.float32)
    for position in (-1, 0, -2):
        texts = [text for text in TEXTS if text != "x" or position != -2]
        acts, logits = model.activations(texts, [RESID], position), model.logits(texts, position)
        for which, text in enumerate(texts):
            with torch.no_grad():
                result = bare(torch.tensor([tokenizer()(text).input_ids]), output_hidden_states=True)
            assert_close(acts[RESID][which], result.hidden_states[2][0, position])
            assert_close(logits[which], result.logits[0, position])


def test_shapes(model: HookedModel) -> None:
    heads, d_head = 4, model.config.to_dict().get("head_dim") or 8
    experts = getattr(model.config, "num_local_experts", None) or getattr(model.config, "num_experts", None)
    acts = model.activations(TEXTS, model.hook_names)
    for point, value in acts.items():
        kind = point.split(".")[-1]
        recurrent = kind == "hook_z" and model.architecture.recurrence and point.split(".")[1] != "1"
        of_heads = (6, 16) if recurrent else (heads, d_head)
        if model.architecture.scalar and not point.startswith("blocks.0."):
            of_heads = (4, 12)
        expected = {"hook_z": of_heads, "hook_post": (48,), "hook_router_logits": (experts,)}.get(kind, (32,))
        if kind in ("hook_expert_weights", "hook_expert_indices"):
            expected = (model.config.num_experts_per_tok,)
        if kind == "hook_post" and model.architecture.scalar and point.startswith("blocks.2."):
            expected = (96,)  # a block that takes another one's keys and values has twice the neurons
        assert value.shape == (len(TEXTS), *expected), point
        assert value.dtype == torch.float32
    assert model.logits(TEXTS).shape == (len(TEXTS), 320)


def test_a_string_is_one_text_and_not_its_characters(llama: HookedModel) -> None:
    text = "How are you?"
    assert_close(llama.activations(text, [RESID])[RESID], llama.activations([text], [RESID])[RESID], 0)
    assert_close(llama.logits(text, chat=True), llama.logits([text], chat=True), 0)
    assert llama.token_ids(text) == llama.token_ids([text])
    assert [batch.indices.tolist() for batch in llama.batches(text)] == [[0]]
    assert complete(llama, text, max_new_tokens=3) == complete(llama, [text], max_new_tokens=3)
    assert render(llama.tokenizer, text) == render(llama.tokenizer, [text])


def test_models_and_checkpoints_say_what_they_are(llama: HookedModel, tiny: Callable[[str], Path]) -> None:
    where = tiny("llama").name
    assert repr(llama) == (
        f"<HookedModel {where} (dense, 32.00 bits per weight): llama, 3 blocks, float32 on cpu, 23 hooks>"
    )
    assert repr(llama.checkpoint) == f"<Checkpoint {where}: dense, 32.00 bits per weight, llama, 3 blocks>"
    unstored = HookedModel(llama.hf, llama.tokenizer, llama.architecture)
    assert repr(unstored) == "<HookedModel made in memory: llama, 3 blocks, float32 on cpu, 23 hooks>"


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
def test_batches_of_any_size_give_every_text_its_own_row(llama: HookedModel, batch_size: int) -> None:
    seen: dict[int, Tensor] = {}

    def consume(acts: dict[str, Tensor], indices: Tensor) -> None:
        assert len(indices) <= batch_size
        seen.update(zip(indices.tolist(), acts[RESID], strict=True))

    llama.stream(TEXTS, [RESID], consume, batch_size=batch_size)
    rows = torch.stack([seen[which] for which in range(len(TEXTS))])
    assert_close(rows, llama.activations(TEXTS, [RESID])[RESID])


def test_a_budget_of_tokens_bounds_the_batches(llama: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.batching.BATCH_TOKENS", 50)
    shapes = []
    with llama.hf.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    ):
        llama.activations(TEXTS, [RESID])
    assert all(rows * width <= 50 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_streamed_statistics_equal_those_of_all_activations(llama: HookedModel) -> None:
    stats = RunningStats()
    llama.stream(TEXTS, [RESID], lambda acts, _: stats.add(acts[RESID]), batch_size=2)
    acts = llama.activations(TEXTS, [RESID])[RESID].double()
    torch.testing.assert_close(stats.mean, acts.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(stats.variance(), acts.var(0), rtol=1e-4, atol=1e-7)


def test_only_the_position_asked_for_is_unembedded(llama: HookedModel) -> None:
    shapes = []
    with llama.hf.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape[:2])):
        llama.logits(TEXTS)
    assert shapes == [(len(TEXTS), 1)]


def test_interventions_reach_activations_and_logits(llama: HookedModel) -> None:
    with llama.intervene({RESID: torch.zeros_like}):
        assert not llama.activations(TEXTS, [RESID])[RESID].any()
        assert not llama.logits(TEXTS).any()  # Llama has no biases: nothing in, nothing out
    assert llama.logits(TEXTS).any()


def test_chat_prompts_carry_one_bos_and_end_with_the_generation_prompt(llama: HookedModel) -> None:
    (ids,) = llama.token_ids(["Tell me."], chat=True)
    assert ids.count(0) == 1
    assert llama.tokenizer.decode(ids) == "<s><|user|>Tell me.\n<|assistant|>"
    rendered = "<|user|>Tell me.\n<|assistant|>"
    assert torch.equal(llama.logits(["Tell me."], chat=True), llama.logits([rendered]))


def test_greedy_generation_starts_with_the_largest_logit(llama: HookedModel) -> None:
    ids = torch.tensor(llama.token_ids(TEXTS[:1]))
    generated = llama.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
    assert generated[0, -1] == llama.logits(TEXTS[:1]).argmax()


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_chat_without_a_template_is_an_error(tmp_path: Path) -> None:
    write("gpt2", tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        load(tmp_path).logits(TEXTS, chat=True)


def test_a_prompt_longer_than_the_context_is_named(model: HookedModel) -> None:
    long = "x y " * CONTEXT
    with pytest.raises(InputError, match=rf"Prompt 1 \('x y .*at most {CONTEXT}"):
        model.activations(["fine", long], ["hook_embed"])


def test_prompts_that_cannot_be_measured_are_named(tmp_path: Path) -> None:
    write("llama", tmp_path)
    tokenizer(adds_bos=False).save_pretrained(tmp_path)
    model = load(tmp_path)
    with pytest.raises(InputError, match="no prompts"):
        model.logits([])
    with pytest.raises(InputError, match="Prompt 1 is empty"):
        model.logits(["a", ""])
    with pytest.raises(InputError, match=r"Prompt 1 has 1 tokens.*position -2"):
        model.logits(["How do I", "x"], position=-2)
    with pytest.raises(InputError, match="position 5"):
        model.activations(["x"], [RESID], position=5)


def test_what_is_not_finite_never_leaves(tmp_path: Path) -> None:
    half = load(write("llama", tmp_path), dtype=torch.float16)
    with half.intervene({"blocks.1.hook_mlp_out": lambda added: added.sign() * 60_000 * 2}):
        with pytest.raises(NotFinite, match=r"blocks\.1\.hook_resid_post.*float32"):
            half.activations(TEXTS, [RESID])
        with pytest.raises(NotFinite, match="logits"):
            half.logits(TEXTS)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    weights = load_file(write("llama", tmp_path) / "model.safetensors")
    save_file(weights | {name: weights[name] * 1e8}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFinite, match=rf"{name} of {tmp_path} holds NaN or infinity in torch.float16"):
        load(tmp_path, dtype=torch.float16)
    assert load(tmp_path, dtype=torch.float32).logits(TEXTS).isfinite().all()
    weights[name][0, 0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFinite, match=name):
        load(tmp_path)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=f"The device '{device}' cannot be used"):
        load(tiny("llama"), device=device)


@pytest.mark.parametrize("content", ["{", "[1]"])
@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json"])
def test_damaged_settings_beside_the_weights_are_refused(file: str, content: str, tmp_path: Path) -> None:
    (write("llama", tmp_path) / file).write_text(content)
    with pytest.raises(InputError, match=str(tmp_path)):
        load(tmp_path)


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    write("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(InputError, match="shape"):
        load(tmp_path)


def test_falcon_3_is_a_llama_of_wide_heads(tmp_path: Path) -> None:
    """Its config.json says `"model_type": "llama"` and a head_dim of its own: the row of Llama is right for it."""
    config = LlamaConfig(**CONFIGS["llama"]().to_dict() | {"head_dim": 12})
    torch.manual_seed(0)
    bare = LlamaForCausalLM(config).eval()
    bare.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load(tmp_path)
    acts = model.activations(TEXTS, ["blocks.1.attn.hook_z", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_mid"])
    assert acts["blocks.1.attn.hook_z"].shape == (len(TEXTS), 4, 12)
    added = acts["blocks.1.attn.hook_z"].flatten(1) @ bare.model.layers[1].self_attn.o_proj.weight.detach().T
    torch.testing.assert_close(acts["blocks.1.hook_resid_pre"] + added, acts["blocks.1.hook_resid_mid"])
    ids = torch.tensor(model.token_ids(TEXTS[:1]))
    with torch.no_grad():
        assert torch.equal(model.hf(ids).logits, bare(ids).logits)
