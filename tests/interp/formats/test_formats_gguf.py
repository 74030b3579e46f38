from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from interp.architectures import ARCHITECTURES
from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.experts import named_weights
from interp.formats.gguf import unpermute
from interp.opening import load
from tests import tiny_models
from tests.gguf_files import write_gguf
from tests.tiny_models import CONFIGS, IN_GGUF, bare_model

Q8_0 = gguf.GGMLQuantizationType.Q8_0
F16 = gguf.GGMLQuantizationType.F16
TEXT = "How do I bake bread?"


def state_of(model_type: str) -> tuple[dict[str, torch.Tensor], object]:
    torch.manual_seed(0)
    config = CONFIGS[model_type]()
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # norms are all ones or zeros otherwise, and biases all zeros
        torch.nn.init.normal_(parameter, std=0.3)
    return {name: parameter.detach().half() for name, parameter in model.named_parameters()}, config


@pytest.mark.parametrize("model_type", IN_GGUF)
def test_f16_file_gives_the_model_that_was_converted(model_type: str, tmp_path: Path) -> None:
    state, config = state_of(model_type)
    row = ARCHITECTURES[model_type]
    ck = open_checkpoint(write_gguf(tmp_path / "m.gguf", state, config, row.gguf, F16))
    assert ck.format == "gguf"
    assert ck.config is None
    assert ck.architecture.gguf == row.gguf
    assert ck.compute_dtype is torch.float16
    assert set(ck.names()) == set(state)
    for name, expected in state.items():
        tolerance = 1e-6 if row.gguf_norm_offset and name.endswith("norm.weight") else 0.0  # (w + 1) - 1 in float32
        torch.testing.assert_close(ck.tensor(name).float(), expected.float(), rtol=0, atol=tolerance)
    for name in ck.linears():
        expected = state[f"{name}.weight"]
        assert torch.equal(ck.weight(name, torch.float16), expected.T if row.conv1d else expected)
        assert not ck.is_quantized(name)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_agree_with_transformers_own_gguf_loader(kind: str, tmp_path: Path) -> None:
    state, config = state_of("qwen2")
    quantization = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "m.gguf", state, config, "qwen2", quantization, **{"qwen2__vocab_size": config.vocab_size})
    theirs = _load_with_transformers(tmp_path, config)
    ck = open_checkpoint(tmp_path)  # a directory with exactly one .gguf
    for name in ck.names():
        assert torch.equal(ck.tensor(name, torch.float32), theirs[name]), name
    block, size = gguf.GGML_QUANT_SIZES[quantization]
    shapes = {name: state[f"{name}.weight"].shape for name in ck.linears()}
    bits = sum(shape.numel() * (8 * size / block if not shape[-1] % block else 16) for shape in shapes.values())
    assert ck.bits_per_weight() == pytest.approx(bits / sum(shape.numel() for shape in shapes.values()))
    assert all(ck.is_quantized(name) == (not shape[-1] % block) for name, shape in shapes.items())


LLAMA_CPP_WRITES = (
    *("TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "NVFP4"),
)


@pytest.mark.parametrize("kind", LLAMA_CPP_WRITES)
def test_blocks_agree_with_llama_cpp(kind: str, tmp_path: Path) -> None:
    """Quantized by llama.cpp, read by us, held against what llama.cpp dequantizes."""
    ggml = pytest.importorskip("tests.ggml")
    pytest.importorskip("llama_cpp")
    quantization = gguf.GGMLQuantizationType[kind]
    config = AutoConfig.for_model(
        "qwen2", vocab_size=32, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4
    )
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    stored: list[tuple[np.ndarray, np.ndarray]] = []

    def quantize(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        stored.append((values, ggml.quantize(values, kind)))
        return stored[-1][1]

    path = write_gguf(tmp_path / "m.gguf", state, config, "qwen2", quantization, quantize)
    expected = {values.tobytes(): ggml.dequantize(blocks, quantization) for values, blocks in stored}
    ck = open_checkpoint(path)
    assert len(ck.linears()) == 7
    for name in ck.linears():
        theirs = expected[state[f"{name}.weight"].numpy().tobytes()]
        assert np.array_equal(ck.weight(name, torch.float32).numpy(), theirs), name
        assert np.corrcoef(theirs.ravel(), state[f"{name}.weight"].numpy().ravel())[0, 1] > 0.5


def _load_with_transformers(directory: Path, config: object) -> dict[str, torch.Tensor]:
    """Names and blocks only: the loader is given a config, so nothing hangs on its reading of the metadata."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    loaded = load_gguf_checkpoint(str(directory / "m.gguf"), return_tensors=True, model_to_load=skeleton)
    return {name: tensor.float() for name, tensor in loaded["tensors"].items()}


def test_llama_rows_agree_with_transformers_own_unpermutation(tmp_path: Path) -> None:
    state, config = state_of("llama")
    write_gguf(tmp_path / "m.gguf", state, config, "llama", Q8_0)
    theirs = _load_with_transformers(tmp_path, config)
    ck = open_checkpoint(tmp_path / "m.gguf")
    for name in ck.names():
        assert torch.equal(ck.tensor(name, torch.float32), theirs[name]), name


def test_fused_attention_of_older_phi_files(tmp_path: Path) -> None:
    state, config = state_of("phi")
    fused = dict(state)
    for suffix in ("weight", "bias"):
        for block in range(config.num_hidden_layers):
            parts = [fused.pop(f"model.layers.{block}.self_attn.{part}_proj.{suffix}") for part in "qkv"]
            fused[f"h.{block}.attn.c_attn.{suffix}"] = torch.cat(parts)  # a name the map knows for attn_qkv
    ck = open_checkpoint(write_gguf(tmp_path / "m.gguf", fused, config, "phi2", F16))
    assert set(ck.names()) == set(state)
    for name, expected in state.items():
        assert torch.equal(ck.tensor(name, torch.float16), expected), name
    assert ck.bits_per_weight() == 16


def test_no_output_tensor_means_tied(tmp_path: Path) -> None:
    state, config = state_of("llama")
    del state["lm_head.weight"]
    ck = open_checkpoint(write_gguf(tmp_path / "m.gguf", state, config, "llama", F16))
    assert "lm_head.weight" not in ck.names()


@given(heads=st.integers(1, 6), half=st.integers(1, 5), columns=st.integers(1, 4))
def test_unpermute_undoes_the_converter(heads: int, half: int, columns: int) -> None:
    rows = torch.arange(heads * 2 * half * columns, dtype=torch.float32).reshape(-1, columns)
    stored = rows.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(rows.shape)
    assert torch.equal(unpermute(stored, heads), rows)
    assert torch.equal(unpermute(stored[:, 0], heads), rows[:, 0])


def test_truncated_file(tmp_path: Path) -> None:
    state, config = state_of("llama")
    whole = write_gguf(tmp_path / "m.gguf", state, config, "llama", Q8_0)
    for keep in (0, 3, 40, 900, whole.stat().st_size - 100):
        cut = tmp_path / f"{keep}.gguf"
        cut.write_bytes(whole.read_bytes()[:keep])
        with pytest.raises(InputError, match=rf"{keep}\.gguf is truncated or is not a GGUF"):
            open_checkpoint(cut)


def test_missing_tensor_and_infinite_scale_are_named(tmp_path: Path) -> None:
    state, config = state_of("llama")
    partial = {name: tensor for name, tensor in state.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(InputError, match=r"'blk\.1\.ffn_up\.weight'.* is missing from .*a\.gguf"):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", partial, config, "llama", F16))
    name = "model.layers.2.mlp.down_proj.weight"
    broken = {**state, name: torch.full_like(state[name], torch.inf)}
    ck = open_checkpoint(write_gguf(tmp_path / "b.gguf", broken, config, "llama", F16))
    with pytest.raises(InputError, match=r"'blk\.2\.ffn_down\.weight' of .*b\.gguf holds NaN or infinite"):
        ck.tensor(name)


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_that_the_rows_cannot_have_are_named(heads: int, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", *state_of("llama"), "llama", F16)
    rewritten(file, "llama.attention.head_count", heads)
    with pytest.raises(InputError, match=f"gives llama.attention.head_count as {heads}, and .*q_proj.* has 32 rows"):
        open_checkpoint(file).weight("model.layers.0.self_attn.q_proj")


def rewritten(file: Path, field: str, value: int) -> Path:
    """The file with another number in a field of its metadata."""
    reader = gguf.GGUFReader(file, "r+")
    reader.fields[field].parts[-1][0] = value
    reader.data.flush()
    return file


@pytest.mark.parametrize("count", [0, 2, 4, 10**9])
def test_blocks_are_counted_before_a_model_is_built(count: int, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", *state_of("llama"), "llama", F16)
    with pytest.raises(InputError, match=rf"describes {count} blocks, and its tensors belong to 3"):
        open_checkpoint(rewritten(file, "llama.block_count", count))


def test_heads_of_fused_attention_that_cannot_be(tmp_path: Path) -> None:
    state, config = state_of("gpt_neox")
    file = write_gguf(tmp_path / "x.gguf", state, config, "gptneox", F16)
    for heads in (0, 5, 2**31 - 1):
        ck = open_checkpoint(rewritten(file, "gptneox.attention.head_count", heads))
        with pytest.raises(InputError, match=f"head_count as {heads}, and .*query_key_value.* has 96 rows"):
            ck.weight("gpt_neox.layers.0.attention.query_key_value")
    state, config = state_of("phi")
    fused = {name: tensor for name, tensor in state.items() if "self_attn.q_proj" not in name}
    for block in range(3):
        for suffix, shape in (("weight", (96, 32)), ("bias", (96,))):
            fused[f"h.{block}.attn.c_attn.{suffix}"] = torch.ones(shape)
    file = write_gguf(tmp_path / "y.gguf", fused, config, "phi2", F16)
    with pytest.raises(InputError, match=r"head_count as 5, and blk\.0\.attn_qkv\.weight has 96 rows"):
        open_checkpoint(rewritten(file, "phi2.attention.head_count", 5))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", "three", "gives llama.block_count as three. Expected a whole number"),
        ("llama.block_count", 3.0, "gives llama.block_count as 3.0"),
        ("llama.block_count", [3, 3], r"gives llama.block_count as \[3, 3\]"),
        ("llama.block_count", True, "gives llama.block_count as True"),
        ("split.count", -2, "gives split.count as -2"),
        ("llama.expert_count", float("nan"), "gives llama.expert_count as nan"),
    ],
)
def test_counts_of_another_type_are_named(key: str, value: Any, message: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    if key != "llama.block_count":
        writer.add_block_count(3)
    kinds = {str: "string", float: "float32", list: "array", bool: "bool", int: "int32"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    for block in range(3):
        writer.add_tensor(f"blk.{block}.attn_q.weight", np.ones((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "x.gguf").quantization  # noqa: B018


@pytest.mark.parametrize(
    "values", [np.ones((32, 32), np.int32), np.ones((32, 32), np.int8), np.ones((1024,), np.float16)]
)
def test_whole_numbers_and_vectors_are_no_matrices(values: np.ndarray, tmp_path: Path) -> None:
    state, config = state_of("llama")
    write_gguf(tmp_path / "x.gguf", state, config, "llama", F16)
    source = gguf.GGUFReader(tmp_path / "x.gguf")
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "llama")
    writer.add_block_count(3)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, values if tensor.name == "blk.1.attn_q.weight" else np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"'blk\.1\.attn_q\.weight' of .*\.gguf has the (block type I|shape \[1024\])"):
        open_checkpoint(tmp_path / "y.gguf")


def test_two_tensors_in_one_place(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", *state_of("llama"), "llama", F16)
    reader = gguf.GGUFReader(file, "r+")
    first, second = reader.tensors[1:3]
    second.field.parts[5][0] = first.field.parts[5][0]
    reader.data.flush()
    with pytest.raises(InputError, match=rf"the tensor '{second.name}' begins at"):
        open_checkpoint(file)


@pytest.mark.parametrize("kind", [F16, Q8_0])
@pytest.mark.parametrize("name", ["gpt_oss", "mixtral", "olmoe"])
def test_every_expert_is_read_by_itself(name: str, kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    model, row = bare_model(name), ARCHITECTURES[name]
    state = {key: parameter.detach() for key, parameter in model.named_parameters()}
    count = {f"{row.gguf}__expert_count": getattr(model.config, row.experts.count_key)}  # type: ignore[union-attr]
    file = write_gguf(tmp_path / "m.gguf", state, model.config, row.gguf, kind, **count)
    checkpoint = open_checkpoint(file)
    assert (checkpoint.architecture.model_type, checkpoint.warnings) == (name, [])
    baseline = dict(named_weights(model, row))
    assert {*checkpoint.names()} == {*baseline}
    for key, parameter in baseline.items():
        if ".experts." not in key or not key.endswith(".weight"):
            continue
        module = key.removesuffix(".weight")
        assert checkpoint.is_quantized(module) == (kind == Q8_0 and parameter.shape[1] % 32 == 0)
        if checkpoint.is_quantized(module):
            stored = gguf.quantize(parameter.contiguous().numpy(), kind)
            assert torch.equal(checkpoint.tensor(key), torch.from_numpy(gguf.dequantize(stored, kind)))
            assert checkpoint.linear_bits(module) == 8.5
    dense = tiny_models.write(name, tmp_path / "baseline")
    found, expected = (model.logits([TEXT])[0] for model in (load(file, like=dense), load(dense)))
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_experts_that_a_gguf_does_not_hold(tmp_path: Path) -> None:
    model = bare_model("mixtral")
    state = {key: parameter.detach() for key, parameter in model.named_parameters()}
    with pytest.raises(
        InputError, match=r"'blk\.0\.ffn_gate_exps\.weight' .*has the shape \[4, 48, 32\]\. Expected one"
    ):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", state, model.config, "llama", F16, llama__expert_count=3))
    lost = bare_model("gpt_oss")
    rest = {key: parameter.detach() for key, parameter in lost.named_parameters() if not key.endswith("_proj_bias")}
    with pytest.raises(InputError, match=r"'blk\.0\.ffn_gate_exps\.bias' .* is missing"):
        open_checkpoint(
            write_gguf(tmp_path / "c.gguf", rest, lost.config, "gpt-oss", F16, **{"gpt-oss__expert_count": 4})
        )
    short = {key: tensor for key, tensor in state.items() if key != "model.layers.1.mlp.experts.down_proj"}
    with pytest.raises(InputError, match=r"'blk\.1\.ffn_down_exps\.weight' .* is missing"):
        open_checkpoint(write_gguf(tmp_path / "b.gguf", short, model.config, "llama", F16, llama__expert_count=4))


def test_unsupported_files_are_refused_by_name(tmp_path: Path) -> None:
    state, config = state_of("llama")
    with pytest.raises(InputError, match=r"'blk\.0\.ffn_gate_inp\.weight' \(model\.layers\.0\.mlp\.gate\) is missing"):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", state, config, "llama", F16, llama__expert_count=8))
    with pytest.raises(InputError, match="counts 2000000 experts"):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", state, config, "llama", F16, llama__expert_count=2_000_000))
    with pytest.raises(InputError, match=r"one part of a GGUF split into 3 files\. Expected a name like"):
        open_checkpoint(write_gguf(tmp_path / "b.gguf", state, config, "llama", F16, split__count=3))
    with pytest.raises(InputError, match=r"'bloom' of .*c\.gguf is not supported"):
        open_checkpoint(write_gguf(tmp_path / "c.gguf", {}, config, "bloom", F16))
    with pytest.raises(InputError, match=r"holds 3 \.gguf files"):
        open_checkpoint(tmp_path)
