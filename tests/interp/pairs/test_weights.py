from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.pairs import scales as scales_module
from interp.pairs.baseline import baseline_warnings
from interp.pairs.scales import effective_weight, recovered_scales
from interp.pairs.weight_error import check_pair, weight_error, weight_error_columns
from interp.quantize.gguf_f16 import write_f16
from tests.cells import q8_0
from tests.gguf_files import write_gguf
from tests.packed_files import edit
from tests.tiny_models import tokenizer as tiny_tokenizer
from tests.tiny_models import write
from tests.writer_models import write_checkpoint

DIRECTORIES = ["autoawq_gemm", "autoawq_gemv", "gptqmodel_v1", "gptqmodel_v2_act", "compressed_w4a16"]


def wide_checkpoint(directory: Path, model: str = "llama") -> Path:
    """A tiny model with enough channels for statistics, its norms unlike 1."""
    import transformers

    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2 if model != "phi" else 4}
    config = transformers.AutoConfig.for_model(model, **sizes, **heads, max_position_embeddings=64)
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(0, 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    net.half().save_pretrained(directory)
    write("llama", directory / "tokenizer")
    (directory / "tokenizer" / "tokenizer.json").rename(directory / "tokenizer.json")
    return directory


def round_to_nearest(weight: torch.Tensor, bits: int = 4, group_size: int = 16) -> torch.Tensor:
    """Symmetric rounding, as a quantizer without AWQ would."""
    groups = weight.double().reshape(weight.shape[0], -1, group_size)
    step = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((groups / step).round() * step).reshape(weight.shape).half()


def rescale(
    tensors: dict[str, torch.Tensor],
    spread: float,
    seed: int,
    pairs: list[tuple[str, str]],
    norm_spread: float | None = None,
) -> None:
    """AWQ's function-preserving rescaling of every block, in place and before rounding."""
    random = torch.Generator().manual_seed(seed)

    def factor(n: int, spread: float = spread) -> torch.Tensor:
        return (torch.randn(n, generator=random) * spread).exp()

    norms = [
        ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
    ]
    for block in ("model.layers.0.", "model.layers.1."):
        for norm, consumers in norms:
            s = factor(tensors[f"{block}{norm}.weight"].shape[0], spread if norm_spread is None else norm_spread)
            tensors[f"{block}{norm}.weight"] = (tensors[f"{block}{norm}.weight"].float() / s).half()
            for consumer in consumers:
                tensors[f"{block}{consumer}.weight"] = tensors[f"{block}{consumer}.weight"].float() * s
        for producer, consumer in pairs:
            rows = tensors[f"{block}{producer}.weight"]
            s = factor(rows.shape[0])
            tensors[f"{block}{producer}.weight"] = rows.float() / s[:, None]
            columns = tensors[f"{block}{consumer}.weight"]
            repeats = columns.shape[1] // len(s)  # query heads that share a value head of 16 channels
            spread_out = s.reshape(-1, 16).repeat_interleave(repeats, 0).reshape(-1) if repeats > 1 else s
            tensors[f"{block}{consumer}.weight"] = columns.float() * spread_out


def quantize(
    baseline: Path,
    directory: Path,
    spread: float,
    pairs: list[tuple[str, str]],
    bits: int = 4,
    seed: int = 1,
    norm_spread: float | None = None,
) -> Path:
    """A dense checkpoint holding the rounded weights of a rescaled model."""
    directory.mkdir()
    for file in ("config.json", "tokenizer.json"):
        (directory / file).write_bytes((baseline / file).read_bytes())
    tensors = load_file(baseline / "model.safetensors")
    rescale(tensors, spread, seed, pairs, norm_spread)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensors[name] = round_to_nearest(tensor, bits)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


PAIRS = [("self_attn.v_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj")]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_known_rescaling_is_recovered_and_the_known_error_remains(bits: int, tmp_path: Path) -> None:
    baseline_path = wide_checkpoint(tmp_path / "base")
    quantized_path = quantize(baseline_path, tmp_path / "quantized", 0.5, PAIRS, bits)
    truth = load_file(baseline_path / "model.safetensors")
    rescaled = dict(truth)
    rescale(rescaled, 0.5, 1, PAIRS)
    baseline, quantized = open_checkpoint(baseline_path), open_checkpoint(quantized_path)
    scales = recovered_scales(baseline, quantized)
    assert scales.warnings == []
    table = weight_error(baseline, quantized)
    for name in baseline.linears():
        before, after = truth[f"{name}.weight"].double(), rescaled[f"{name}.weight"].double()
        error = round_to_nearest(after, bits).double() - after
        # The factor of each element is after / before, whatever norm, rows and columns it is made of.
        known = (error * before / after).norm() / before.norm()
        undone = (effective_weight(quantized, name, scales, torch.float64) - before).norm() / before.norm()
        exact = name not in scales.outputs and not name.endswith(("o_proj", "down_proj"))  # fed by a norm alone
        fitted = {3: 0.08, 4: 0.02, 8: 0.02}[bits]  # a fit is as uncertain as the 64 rounded weights of a channel
        assert float(undone) == pytest.approx(float(known), rel=1e-3 if exact else fitted)
        assert (quantized.weight(name).double() - before).norm() / before.norm() > 0.4
        rows = table[table.module == name]
        np.testing.assert_allclose(
            (rows.rms_error**2).sum() / (rows.rms_weight**2).sum(), float(undone) ** 2, rtol=1e-4
        )


@pytest.mark.parametrize("seed", range(4))
def test_a_small_factor_of_the_norm_shows_beside_a_large_one_of_the_rows(seed: int, tmp_path: Path) -> None:
    """up_proj reads a norm and feeds down_proj: its rows and its columns are rescaled, the rows by much more."""
    baseline = wide_checkpoint(tmp_path / "base")
    quantized = quantize(baseline, tmp_path / "quantized", 0.7, PAIRS, seed=seed, norm_spread=0.04)
    scales = recovered_scales(open_checkpoint(baseline), open_checkpoint(quantized))
    assert scales.warnings == []
    assert all(f"model.layers.{block}.mlp.up_proj" in scales.inputs for block in range(2))


def test_rescalings_are_looked_for_once_per_opened_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = wide_checkpoint(tmp_path / "base")
    paths = base, quantize(base, tmp_path / "quantized", 0.5, PAIRS, 8)
    looked = Mock(side_effect=scales_module._across_linears)
    monkeypatch.setattr(scales_module, "_across_linears", looked)
    pair = [open_checkpoint(path) for path in paths]
    check_pair(*pair, force=True)  # these weights are stored as rounded, in float16
    weight_error(*pair)
    weight_error_columns(*pair)
    first = recovered_scales(*pair)
    once = looked.call_count
    assert once == 2 * len(PAIRS)
    assert recovered_scales(*map(open_checkpoint, paths)) is not first, "a checkpoint opened again may have changed"
    assert looked.call_count == 2 * once


def test_value_heads_shared_by_query_heads_repeat_their_factor(tmp_path: Path) -> None:
    baseline_path = wide_checkpoint(tmp_path / "base")
    quantized = open_checkpoint(quantize(baseline_path, tmp_path / "q", 0.5, PAIRS, 8))
    scales = recovered_scales(open_checkpoint(baseline_path), quantized)
    rows, columns = scales.outputs["model.layers.0.self_attn.v_proj"], scales.inputs["model.layers.0.self_attn.o_proj"]
    assert (len(rows), len(columns)) == (32, 64)
    assert torch.equal(columns.reshape(2, 2, 16), rows.reshape(2, 1, 16).expand(2, 2, 16))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_plain_rounding_is_never_taken_for_a_rescaling(bits: int, seed: int, tmp_path: Path) -> None:
    baseline = wide_checkpoint(tmp_path / "base")
    tensors = load_file(baseline / "model.safetensors")
    torch.manual_seed(seed)
    for name in tensors:
        if name.endswith("_proj.weight"):
            tensors[name] = round_to_nearest(tensors[name] * (1 + 1e-3 * torch.randn(tensors[name].shape)), bits)
    edited = edit(wide_checkpoint(tmp_path / "q"), lambda stored: stored.update(tensors))
    scales = recovered_scales(open_checkpoint(baseline), open_checkpoint(edited))
    assert (scales.inputs, scales.outputs, scales.norms, scales.warnings) == ({}, {}, {}, [])


def test_rescaling_across_an_activation_is_labelled_and_not_undone(tmp_path: Path) -> None:
    baseline = wide_checkpoint(tmp_path / "base", "phi")
    factor = (torch.randn(96, generator=torch.Generator().manual_seed(0)) * 0.5).exp()

    def fold(tensors: dict[str, torch.Tensor]) -> None:
        for block in (0, 1):
            producer, consumer = (f"model.layers.{block}.mlp.{name}.weight" for name in ("fc1", "fc2"))
            tensors[producer] = round_to_nearest(tensors[producer].float() / factor[:, None])
            tensors[consumer] = round_to_nearest(tensors[consumer].float() * factor)

    quantized = edit(wide_checkpoint(tmp_path / "q", "phi"), fold)
    scales = recovered_scales(open_checkpoint(baseline), open_checkpoint(quantized))
    assert (scales.inputs, scales.outputs) == ({}, {})
    assert len(scales.warnings) == 1
    assert "mlp.fc1 and mlp.fc2" in scales.warnings[0]
    assert "in 2 of 2 blocks" in scales.warnings[0]


def test_layer_norm_biases_are_rescaled_too(tmp_path: Path) -> None:
    baseline = wide_checkpoint(tmp_path / "base", "phi")
    factor = (torch.randn(64, generator=torch.Generator().manual_seed(0)) * 0.5).exp()

    def fold(tensors: dict[str, torch.Tensor], forget: str = "") -> None:
        for name in ("weight", "bias"):
            key = f"model.layers.0.input_layernorm.{name}"
            if name != forget:
                tensors[key] = (tensors[key].float() / factor).half()
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"):
            key = f"model.layers.0.{name}.weight"
            tensors[key] = (tensors[key].float() * factor).half()

    whole = edit(wide_checkpoint(tmp_path / "q", "phi"), fold)
    assert check_pair(baseline, whole) == []
    partial = edit(wide_checkpoint(tmp_path / "r", "phi"), lambda tensors: fold(tensors, forget="bias"))
    with pytest.raises(InputError, match=r"1 of \d+ tensors differ beyond rounding, among them .*layernorm\.bias"):
        check_pair(baseline, partial)


def test_a_rescaled_norm_that_a_linear_does_not_follow_is_labelled(tmp_path: Path) -> None:
    baseline = wide_checkpoint(tmp_path / "base")

    def fold(tensors: dict[str, torch.Tensor]) -> None:
        key = "model.layers.0.post_attention_layernorm.weight"
        factor = (torch.randn(64, generator=torch.Generator().manual_seed(0)) * 0.5).exp()
        tensors[key] = (tensors[key].float() / factor).half()
        up = "model.layers.0.mlp.up_proj.weight"
        tensors[up] = (tensors[up].float() * factor).half()

    scales = recovered_scales(open_checkpoint(baseline), open_checkpoint(edit(wide_checkpoint(tmp_path / "q"), fold)))
    assert list(scales.inputs) == ["model.layers.0.mlp.up_proj"]
    assert "post_attention_layernorm was rescaled, but mlp.gate_proj" in scales.warnings[0]


def relative_error(baseline: Path, quantized: Path, module: str, undone: bool) -> float:
    first, second = open_checkpoint(baseline), open_checkpoint(quantized)
    weight = effective_weight(second, module, recovered_scales(first, second)) if undone else second.weight(module)
    return float((weight - first.weight(module)).norm() / first.weight(module).norm())


@pytest.mark.parametrize("layout", ["autoawq_gemm", "autoawq_gemv"])
@pytest.mark.parametrize(("part", "raw", "undone"), [("mlp.down_proj", 0.53, 0.13), ("self_attn.q_proj", 0.37, 0.22)])
def test_errors_of_the_autoawq_files(fixtures: Path, layout: str, part: str, raw: float, undone: float) -> None:
    module = f"model.layers.0.{part}"
    assert relative_error(fixtures / "fp16", fixtures / layout, module, undone=False) == pytest.approx(raw, abs=0.005)
    assert relative_error(fixtures / "fp16", fixtures / layout, module, undone=True) == pytest.approx(undone, abs=0.005)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_written_cells_are_pairs(fixtures: Path, name: str) -> None:
    warnings = check_pair(fixtures / "fp16", fixtures / name)
    assert [
        w.startswith("mlp.up_proj and mlp.down_proj were rescaled by factors that do not cancel") for w in warnings
    ] == [True] * name.startswith("autoawq")


def test_bfloat16_copy_is_a_pair_and_a_fine_tuned_one_is_not(tmp_path: Path) -> None:
    baseline = write("llama", tmp_path / "base", torch.float16)
    copy = write("llama", tmp_path / "copy", torch.bfloat16)
    assert check_pair(baseline, copy) == []
    tuned = write("llama", tmp_path / "tuned", torch.float16)
    edit(tuned, lambda tensors: tensors["model.norm.weight"].mul_(1.01))
    with pytest.raises(InputError, match=r"not a quantization of this baseline.*model\.norm\.weight.*--force"):
        check_pair(baseline, tuned)
    assert ["model.norm.weight" in warning for warning in check_pair(baseline, tuned, force=True)] == [True]


def test_other_architectures_shapes_and_tokenizers_are_no_pair(tmp_path: Path) -> None:
    baseline = write("llama", tmp_path / "base")
    with pytest.raises(InputError, match=r"qwen2 model, .* a llama model"):
        check_pair(baseline, write("qwen2", tmp_path / "qwen"))
    small = wide_checkpoint(tmp_path / "wide")
    with pytest.raises(InputError, match=r"has shape \(320, 32\) in .* and \(320, 64\) in"):
        check_pair(baseline, small)
    renamed = write("llama", tmp_path / "renamed")
    tokenizer = json.loads((renamed / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (renamed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"2 tokens have other ids, among them \['a', 'b'\]|\['b', 'a'\]"):
        check_pair(baseline, renamed)


def with_token(checkpoint: Path, token: str) -> Path:
    """Rename the pad token of a checkpoint's tokenizer.json."""
    file = checkpoint / "tokenizer.json"
    file.write_text(file.read_text().replace('"<pad>"', json.dumps(token)))
    return checkpoint


def test_tokens_without_an_embedding_are_not_compared(tmp_path: Path) -> None:
    """A pad token that a fine-tune added: the cell's writer may leave it out. One that has an embedding counts."""
    baseline, cell = (write("llama", tmp_path / name) for name in ("base", "cell"))
    more = tiny_tokenizer()
    more.add_tokens([f"<free {index}>" for index in range(321 - len(more))])
    more.save_pretrained(baseline)
    assert max(open_checkpoint(baseline).vocabulary().values()) == 320
    assert check_pair(baseline, cell) == []
    with pytest.raises(InputError, match=r"1 tokens have other ids, among them \['<pad>'\]"):
        check_pair(baseline, with_token(cell, "<filler>"))


def test_added_runs_of_spaces_are_plain_spaces_in_a_gguf(tmp_path: Path) -> None:
    """llama.cpp's converter writes Gemma's added tokens so, and fills what the tokenizer leaves free."""
    baseline = with_token(write("gemma2", tmp_path / "base"), "▁▁")
    by_id = {index: token for token, index in open_checkpoint(baseline).vocabulary().items()}
    assert by_id[2] == "▁▁"
    tokens = [by_id.get(index, f"[PAD{index}]").replace("▁", " ") for index in range(320)]
    cell = gguf_cell(baseline, tmp_path / "cell.gguf", "gemma2", tokenizer__ggml__tokens=tokens)
    assert check_pair(baseline, cell) == []
    swapped = [tokens[1], tokens[0], *tokens[2:]]
    other = gguf_cell(baseline, tmp_path / "other.gguf", "gemma2", tokenizer__ggml__tokens=swapped)
    with pytest.raises(InputError, match=r"2 tokens have other ids"):
        check_pair(baseline, other)


def test_unrelated_quantized_weights_are_no_pair(tmp_path: Path) -> None:
    from tests.packed_files import write_gptq

    baseline = write("llama", tmp_path / "base", torch.float16)
    with pytest.raises(InputError, match=r"21 of \d+ tensors differ"):
        check_pair(baseline, write_gptq(tmp_path / "random"))


def test_rows_of_zeros_have_no_relative_error(tmp_path: Path) -> None:
    baseline = write("llama", tmp_path / "base")
    edit(baseline, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"][3].zero_())
    row = weight_error(baseline, baseline).query("module == 'model.layers.0.mlp.up_proj' and neuron == 3").iloc[0]
    assert row.rms_error == row.rms_weight == 0
    assert np.isnan(row.relative_error)


def test_a_cell_of_gptqmodel_with_norms_in_bfloat16_is_a_pair(fixtures: Path) -> None:
    """Its biases are float16 again after a trip through bfloat16."""
    pair = fixtures / "gptqmodel_bf16_norms"
    assert check_pair(pair / "baseline", pair / "quantized") == []


def tuned(directory: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    return edit(directory, lambda tensors: tensors.update({name: change(tensors[name])}))


def test_a_bias_that_no_rounding_explains_is_a_fine_tune(fixtures: Path, tmp_path: Path) -> None:
    pair, name = fixtures / "gptqmodel_bf16_norms", "model.layers.0.self_attn.q_proj.bias"
    cell = Path(shutil.copytree(pair / "quantized", tmp_path / "cell", copy_function=shutil.copyfile))
    cell.chmod(0o755)
    tuned(cell, name, lambda bias: torch.nextafter(bias, torch.full_like(bias, 2.0)))
    with pytest.raises(InputError, match=rf"1 of \d+ tensors differ beyond rounding, among them {name}"):
        check_pair(pair / "baseline", cell)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cell", [torch.float16, torch.bfloat16, torch.float32])
def test_a_fine_tune_of_three_in_a_thousand_is_seen_in_any_dtypes(
    dtype: torch.dtype, cell: torch.dtype, tmp_path: Path
) -> None:
    baseline = write("llama", tmp_path / "base", dtype)
    copy = write("llama", tmp_path / "copy", dtype)
    edit(copy, lambda tensors: tensors.update({name: tensor.to(cell) for name, tensor in tensors.items()}))
    assert check_pair(baseline, copy) == []
    tuned(copy, "model.embed_tokens.weight", lambda weight: (weight.float() * 1.003).to(weight.dtype))
    with pytest.raises(InputError, match=r"1 of \d+ tensors differ beyond rounding, among them model\.embed_tokens"):
        check_pair(baseline, copy)


def test_a_cell_that_computes_another_function_is_no_pair(tmp_path: Path) -> None:
    baseline, cell = (write("llama", tmp_path / name) for name in ("base", "cell"))
    config = json.loads((cell / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500000.0
    config |= {"rms_norm_eps": 1e-3, "eos_token_id": 7}
    (cell / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"rms_norm_eps = 0\.001 and .* 1e-06; .*rope_theta = 500000\.0") as caught:
        check_pair(baseline, cell)
    assert "eos_token_id" not in str(caught.value)
    assert len(check_pair(baseline, cell, force=True)) == 2


NO_TOKENIZER = ["the tokenizers were not compared: a checkpoint has no tokenizer.json"]


def gguf_cell(
    baseline: Path, out: Path, arch: str, kind: str = "F16", add: dict[str, torch.Tensor] | None = None, **metadata: Any
) -> Path:
    """A GGUF of a checkpoint's tensors as they are stored, and of others."""
    checkpoint = open_checkpoint(baseline)
    state = {name: checkpoint.tensor(name) for name in checkpoint.names()} | (add or {})
    return write_gguf(out, state, checkpoint.config, arch, gguf.GGMLQuantizationType[kind], **metadata)


def test_a_gguf_that_says_another_function_is_no_pair(tmp_path: Path) -> None:
    baseline = write("llama", tmp_path / "base", torch.float16)
    right = {"llama__rope__freq_base": 10000.0, "llama__attention__layer_norm_rms_epsilon": 1e-6}
    assert check_pair(baseline, gguf_cell(baseline, tmp_path / "right.gguf", "llama", **right)) == NO_TOKENIZER
    wrong = right | {"llama__rope__freq_base": 500000.0}
    with pytest.raises(InputError, match=r"metadata say rope\.freq_base = 500000\.0 and .* 10000\.0"):
        check_pair(baseline, gguf_cell(baseline, tmp_path / "wrong.gguf", "llama", **wrong))


@pytest.mark.parametrize(("model", "arch"), [("qwen2", "qwen2"), ("gemma2", "gemma2"), ("gpt2", "gpt2")])
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_an_unembedding_of_its_own_beside_tied_embeddings(model: str, arch: str, kind: str, tmp_path: Path) -> None:
    """llama.cpp multiplies by output.weight wherever there is one."""
    baseline = write(model, tmp_path / "base", torch.float16)
    embedding = open_checkpoint(baseline).tensor(f"{open_checkpoint(baseline).architecture.embed}.weight")
    copied = gguf_cell(baseline, tmp_path / "copied.gguf", arch, kind, {"lm_head.weight": embedding})
    assert check_pair(baseline, copied) == NO_TOKENIZER
    for size in (1.0, 1e-3):
        random = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0)) * size * embedding.std()
        other = gguf_cell(baseline, tmp_path / f"{size}.gguf", arch, kind, {"lm_head.weight": random.half()})
        assert "lm_head.weight" in open_checkpoint(other).names()
        with pytest.raises(InputError, match=r"lm_head\.weight is no copy of .*, with which the baseline computes"):
            check_pair(baseline, other)


def test_a_tied_cell_of_an_untied_baseline_is_no_pair(tmp_path: Path) -> None:
    baseline = write("llama", tmp_path / "base", torch.float16)
    checkpoint = open_checkpoint(baseline)
    state = {name: checkpoint.tensor(name) for name in checkpoint.names() if name != "lm_head.weight"}
    cell = write_gguf(tmp_path / "tied.gguf", state, checkpoint.config, "llama", gguf.GGMLQuantizationType.F16)
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight is no copy of lm_head\.weight"):
        check_pair(baseline, cell)


def test_a_stored_unembedding_is_kept_where_the_config_says_tied(tmp_path: Path) -> None:
    """As transformers does, on which the logits are held."""
    from transformers import AutoModelForCausalLM

    from interp import load
    from tests.tiny_models import TEXTS

    baseline, cell = (write("qwen2", tmp_path / name, torch.float16) for name in ("base", "cell"))
    embedding = open_checkpoint(baseline).tensor("model.embed_tokens.weight")
    edit(cell, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert "lm_head.weight" not in open_checkpoint(cell).names()
    assert check_pair(baseline, cell) == []
    tuned(cell, "lm_head.weight", lambda weight: weight.flip(0))
    opened = open_checkpoint(cell)
    assert torch.equal(opened.tensor("lm_head.weight"), embedding.flip(0))
    assert any("lm_head.weight is stored with other numbers" in warning for warning in opened.warnings)
    with pytest.raises(InputError, match=r"lm_head\.weight is no copy of model\.embed_tokens\.weight"):
        check_pair(baseline, cell)
    model, bare = load(cell), AutoModelForCausalLM.from_pretrained(cell, dtype=torch.float32)
    ids = torch.tensor(model.token_ids(TEXTS[:1]))
    torch.testing.assert_close(model.logits(TEXTS[:1]), bare(ids).logits[:, -1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.logits(TEXTS[:1]), load(baseline).logits(TEXTS[:1]))


def test_tied_weights_stored_under_the_other_name_only(tmp_path: Path) -> None:
    baseline, cell = (write("qwen2", tmp_path / name, torch.float16) for name in ("base", "cell"))
    edit(cell, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    assert check_pair(baseline, cell) == []


@pytest.mark.parametrize("model", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_gguf_of_gemma_is_a_pair_however_small_a_norms_weight(model: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """llama.cpp stores w + 1 in float32, and (w + 1) - 1 is not w."""
    baseline = write(model, tmp_path / "base", dtype)
    tuned(baseline, "model.norm.weight", lambda weight: weight.index_fill(0, torch.tensor([3]), 1e-7))
    arch = open_checkpoint(baseline).architecture.gguf
    cell = gguf_cell(baseline, tmp_path / "cell.gguf", arch)
    assert check_pair(baseline, cell) == NO_TOKENIZER
    shifted = open_checkpoint(baseline).tensor("model.norm.weight").float() + 1e-3
    other = gguf_cell(baseline, tmp_path / "other.gguf", arch, add={"model.norm.weight": shifted})
    with pytest.raises(InputError, match=r"1 of \d+ tensors differ beyond rounding, among them model\.norm\.weight"):
        check_pair(baseline, other)


@pytest.mark.parametrize("by", [1, -1])
def test_norms_that_differ_by_1_are_named_as_that(by: int, tmp_path: Path) -> None:
    """A converter that adds the 1 of Gemma's norms twice, or never."""
    baseline = write("gemma2", tmp_path / "base", torch.bfloat16)
    checkpoint = open_checkpoint(baseline)
    norms = {n: checkpoint.tensor(n).float() + by for n in checkpoint.names() if n.endswith("norm.weight")}
    cell = gguf_cell(baseline, tmp_path / "cell.gguf", "gemma2", add=norms)
    with pytest.raises(InputError, match=rf"{len(norms)} of them differ by a constant 1 \(.*norm\.weight.*w \+ 1"):
        check_pair(baseline, cell)


def test_a_baseline_that_is_quantized_is_told_and_so_is_one_made_of_such(fixtures: Path, tmp_path: Path) -> None:
    cell, dense = (open_checkpoint(fixtures / name) for name in ("autoawq_gemm", "fp16"))
    assert baseline_warnings(dense) == []
    (said,) = baseline_warnings(cell)
    assert said.startswith(f"it is quantized itself (awq, {cell.bits_per_weight():.2f} bits per weight)")
    cell.export(tmp_path / "made of it")
    (said,) = baseline_warnings(open_checkpoint(tmp_path / "made of it"))
    assert said.startswith(f"it was dequantized from a quantized checkpoint (awq, {cell.bits_per_weight():.2f} bits")
    dense.export(tmp_path / "copy")
    assert baseline_warnings(open_checkpoint(tmp_path / "copy")) == []


def test_of_ggufs_only_those_with_blocks_are_quantized(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_f16(write_checkpoint("llama", tmp_path / "model"), tmp_path / "F16.gguf")
    plain, quantized = (
        open_checkpoint(tmp_path / "F16.gguf"),
        open_checkpoint(q8_0(tiny("llama"), tmp_path / "q8.gguf")),
    )
    assert baseline_warnings(plain) == []
    (said,) = baseline_warnings(quantized)
    assert said.startswith(f"it is quantized itself (gguf, {quantized.bits_per_weight():.2f} bits per weight)")
    plain.export(tmp_path / "dense")
    assert baseline_warnings(open_checkpoint(tmp_path / "dense")) == []
