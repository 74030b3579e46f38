"""A streamed model against the same model in memory: the same numbers, one part of the weights, one read of them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interp import HookedModel, load, open_checkpoint
from interp.checkpoint import Checkpoint
from interp.errors import InputError, NotFinite
from interp.loading import empty_model
from interp.streaming import Streamed
from interp.streaming.slot import Slot
from tests.cells import q8_0
from tests.packed_files import edit, write_awq, write_gptq
from tests.tiny_models import CONFIGS, TEXTS

CPU = torch.device("cpu")


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Bit for bit; NaN stands at the pads of both."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def assert_computes_the_same(streamed: HookedModel, model: HookedModel) -> None:
    logits, cache = model.run_with_cache(TEXTS)
    streamed_logits, streamed_cache = streamed.run_with_cache(TEXTS)
    assert logits is not None
    assert streamed_logits is not None
    assert_same(streamed_logits, logits)
    assert list(streamed_cache) == list(cache) == model.hook_names
    for name in cache:
        assert_same(streamed_cache[name], cache[name])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor is read from now on."""
    counts: Counter[str] = Counter()
    tensor = Checkpoint.tensor

    def counted(self: Checkpoint, name: str, dtype: torch.dtype | None = None) -> Tensor:
        counts[name] += 1
        return tensor(self, name, dtype)

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    return counts


@pytest.fixture
def streamed(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"), stream=True)


@pytest.fixture(scope="module")
def llama(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_activation_and_logit_is_the_same(name: str, tiny: Callable[[str], Path]) -> None:
    assert_computes_the_same(load(tiny(name), stream=True), load(tiny(name)))


@pytest.mark.parametrize("write", [write_gptq, write_awq])
def test_packed_files(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "packed")
    assert_computes_the_same(load(path, stream=True), load(path))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_gguf(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = q8_0(tiny(name), tmp_path / "cell.gguf", name)
    assert_computes_the_same(load(path, like=tiny(name), stream=True), load(path, like=tiny(name)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision(dtype: torch.dtype, tiny: Callable[[str], Path]) -> None:
    assert_computes_the_same(load(tiny("llama"), dtype=dtype, stream=True), load(tiny("llama"), dtype=dtype))


def test_several_batches_take_one_read(streamed: HookedModel, llama: HookedModel, reads: Counter[str]) -> None:
    names = ["hook_embed", "blocks.*.hook_resid_post", "ln_final.hook_normalized"]
    ours, theirs = (model.run_with_cache(TEXTS, names, -1, batch_size=2) for model in (streamed, llama))
    assert set(reads.values()) == {1}
    assert_same(ours[0], theirs[0])  # type: ignore[arg-type]
    assert all(torch.equal(ours[1][name], theirs[1][name]) for name in theirs[1])


def test_blocks_after_the_last_hook_are_not_read(streamed: HookedModel, reads: Counter[str]) -> None:
    streamed.activations(TEXTS, ["blocks.1.hook_resid_mid"])
    assert not [name for name in reads if name.startswith("model.layers.2.") or name == "lm_head.weight"]
    reads.clear()
    streamed.activations(TEXTS, ["hook_embed"])
    assert set(reads) == {"model.embed_tokens.weight"}


def test_one_part_is_in_memory(streamed: HookedModel) -> None:
    present: list[set[str]] = []

    def look(value: Tensor, hook: object) -> None:
        held = {name for name, parameter in streamed.hf.named_parameters() if not parameter.is_meta}
        present.append({name.rpartition(".")[0].removesuffix(".mlp") for name in held if "layers" in name})

    streamed.run_with_hooks(TEXTS, [("blocks.*.mlp.hook_post", look)], batch_size=3)
    assert len(present) == 2 * streamed.n_layers
    assert all(len({name.split(".")[2] for name in held}) == 1 for held in present)
    left = [name for name, parameter in streamed.hf.named_parameters() if not parameter.is_meta]
    assert left == ["model.norm.weight"]


def test_expected_passes_share_a_read(streamed: HookedModel, llama: HookedModel, reads: Counter[str]) -> None:
    names = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    asked = ((TEXTS[:2], names, False), (TEXTS[:2], names[:1], True), (TEXTS[2:], names, False))
    streamed.expect(one for texts, hooks, logits in asked for one in streamed.last_tokens(texts, hooks, logits))
    for texts in (TEXTS[:2], TEXTS[2:]):
        ours, theirs = streamed.activations(texts, names), llama.activations(texts, names)
        assert all(torch.equal(ours[name], theirs[name]) for name in names)
    logits, _ = streamed.run_with_cache(TEXTS[:2], names[:1], -1)
    assert torch.equal(logits, llama.logits(TEXTS[:2]))  # type: ignore[arg-type]
    assert set(reads.values()) == {1}
    streamed.activations(TEXTS[:2], names)  # once more than announced
    assert reads["model.layers.0.mlp.up_proj.weight"] == 2


def test_interventions_act_and_are_not_remembered(streamed: HookedModel, llama: HookedModel) -> None:
    double = ("blocks.1.hook_resid_mid", lambda resid: 2 * resid)
    streamed.expect(streamed.last_tokens(TEXTS, logits=True))
    assert torch.equal(
        streamed.run_with_hooks(TEXTS, [double], position=-1), llama.run_with_hooks(TEXTS, [double], position=-1)
    )
    assert torch.equal(streamed.logits(TEXTS), llama.logits(TEXTS))


def test_hook_functions_are_told_the_texts(streamed: HookedModel) -> None:
    seen: list[list[int]] = []
    streamed.run_with_hooks(
        TEXTS, [("blocks.1.hook_mlp_out", lambda value, hook: seen.append(hook.indices))], batch_size=2
    )
    assert sorted(index for indices in seen for index in indices) == list(range(len(TEXTS)))


def test_generation_reads_for_every_token(streamed: HookedModel, llama: HookedModel, reads: Counter[str]) -> None:
    assert streamed.generate(TEXTS[:2], 3) == llama.generate(TEXTS[:2], 3)
    assert reads["model.layers.0.mlp.up_proj.weight"] == 3


def test_residual_streams_wait_in_files(tiny: Callable[[str], Path], llama: HookedModel, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    hf = empty_model(checkpoint.config, torch.float32)
    row = llama.architecture
    small = Streamed(Slot(hf, row, checkpoint, torch.float32, CPU), limit=1000)
    model = HookedModel(hf, llama.tokenizer, row, checkpoint, small)
    ours, theirs = (m.run_with_cache(TEXTS, batch_size=1) for m in (model, llama))
    assert_same(ours[0], theirs[0])  # type: ignore[arg-type]
    for name in llama.hook_names:
        assert_same(ours[1][name], theirs[1][name])


def test_the_next_part_is_read_ahead(tiny: Callable[[str], Path], llama: HookedModel) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    hf = empty_model(checkpoint.config, torch.float32)
    ahead = Streamed(Slot(hf, llama.architecture, checkpoint, torch.float32, CPU, ahead=True))
    assert_computes_the_same(HookedModel(hf, llama.tokenizer, llama.architecture, checkpoint, ahead), llama)


def test_the_parts_are_put_on_the_device(tiny: Callable[[str], Path]) -> None:
    """The meta device stands in for an accelerator: every weight and buffer of a part goes there."""
    checkpoint = open_checkpoint(tiny("llama"))
    hf = empty_model(checkpoint.config, torch.float32)
    slot = Slot(hf, checkpoint.architecture, checkpoint, torch.float32, torch.device("meta"))
    slot.hold("model.layers.1")
    assert {tensor.device.type for tensor in [*hf.parameters(), *hf.buffers()]} == {"meta"}
    assert hf.get_parameter("model.layers.1.mlp.up_proj.weight") is not slot._empty["model.layers.1.mlp.up_proj.weight"]
    slot.drop()
    assert slot.bytes_of("model.layers.1") == 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32)


def test_an_unembedding_of_its_own_where_the_config_says_tied(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny("qwen2"), tmp_path / "model"))
    edit(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].flip(0).contiguous()}))
    model, streamed = load(path), load(path, stream=True)
    assert not torch.equal(model.hf.get_output_embeddings().weight, model.hf.get_input_embeddings().weight)
    assert_same(streamed.logits(TEXTS), model.logits(TEXTS))


def test_a_weight_that_is_not_finite(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny("llama"), tmp_path / "model"))
    edit(path, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(torch.nan))
    with pytest.raises(NotFinite, match=r"layers\.1\.mlp\.up_proj"):
        load(path, stream=True).logits(TEXTS)


def test_a_streamed_model_takes_no_device_map(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="one device"):
        load(tiny("llama"), stream=True, device_map="auto")


def test_on_the_way_back_the_part_before_is_read_ahead(tiny: Callable[[str], Path], reads: Counter[str]) -> None:
    checkpoint = open_checkpoint(tiny("llama"))
    hf = empty_model(checkpoint.config, torch.float32)
    slot = Slot(hf, checkpoint.architecture, checkpoint, torch.float32, CPU, ahead=True)
    blocks = [f"model.layers.{number}" for number in range(checkpoint.config.num_hidden_layers)]
    parts = ["model.embed_tokens", *blocks, "lm_head"]
    reads.clear()
    for part in (*parts, *parts[-2:0:-1]):
        slot.hold(part)
    slot.forget()
    assert reads["lm_head.weight"] == 1
    assert {n for name, n in reads.items() if name.startswith("model.layers.")} == {2}
