from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import interp
from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from tests.packed_files import edit, write_gptq
from tests.tiny_models import DENSE, bare_model, write

REFERENCES = {
    "autoawq_gemm": "autoawq_gemm",
    "autoawq_gemv": "autoawq_gemm",
    "gptqmodel_v1": "gptqmodel_v1",
    "gptqmodel_v2_act": "gptqmodel_v2_act",
    "compressed_w4a16": "compressed_w4a16",
}


def configure(directory: Path, **settings: Any) -> Path:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | settings))
    return directory


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_equals_the_writers_own_dequantization_bit_for_bit(fixtures: Path, name: str) -> None:
    reference = load_file(fixtures / f"{REFERENCES[name]}.reference.safetensors")
    ck = open_checkpoint(fixtures / name)
    assert {f"{linear}.weight" for linear in ck.linears()} == set(reference)
    for linear in ck.linears():
        assert torch.equal(ck.tensor(f"{linear}.weight"), reference[f"{linear}.weight"])
        assert ck.tensor(f"{linear}.weight").dtype is torch.float16
        assert torch.equal(ck.weight(linear), reference[f"{linear}.weight"].float())


def test_facts_of_the_written_files(fixtures: Path) -> None:
    found = {name: open_checkpoint(fixtures / name) for name in ["fp16", *REFERENCES]}
    assert {name: ck.format for name, ck in found.items()} == {
        "fp16": "dense",
        "autoawq_gemm": "awq",
        "autoawq_gemv": "awq",
        "gptqmodel_v1": "gptq",
        "gptqmodel_v2_act": "gptq",
        "compressed_w4a16": "compressed-tensors",
    }
    assert [ck.quantization.get("act_order") for ck in found.values()] == [None, False, False, False, True, False]
    assert [ck.quantization.get("version") for ck in found.values()] == [None, "gemm", "gemv", 1, 2, "0.19.0"]
    assert found["gptqmodel_v1"].compute_dtype is torch.bfloat16  # its norms; the scales are float16 and do not count
    assert found["fp16"].bits_per_weight() == 16
    assert all(ck.warnings == [] for ck in found.values())
    assert all(not hasattr(ck.config, "quantization_config") for ck in found.values())


@pytest.mark.parametrize("name", sorted(DENSE))
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_dense_checkpoints_of_every_architecture(name: str, shard: str, tmp_path: Path) -> None:
    model = bare_model(name)
    ck = open_checkpoint(write(name, tmp_path, shard=shard))
    expected = {key: parameter.detach() for key, parameter in model.named_parameters()}
    expected |= {key: buffer for key, buffer in model.named_buffers() if key in model.state_dict()}
    assert ck.names() == list(expected)
    for key, parameter in expected.items():
        assert torch.equal(ck.tensor(key), parameter)
    for linear in ck.linears():
        module = model.get_submodule(linear)
        inputs = torch.randn(2, ck.weight_shape(linear)[1])
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(inputs @ ck.weight(linear).T + bias, module(inputs))
    per_block = {"gpt2": 4, "gpt_neox": 4, "gpt_neox_sequential": 4, "phi": 6, "phi3": 4}.get(name, 7)
    assert len(ck.linears()) == {"qwen3_5_text": 8 + 7 + 8, "gemma4_text": 9 + 8 + 7}.get(name, 3 * per_block)
    assert ck.compute_dtype is torch.float32
    assert ck.bits_per_weight() == 32


def test_file_of_the_bare_base_model(tmp_path: Path) -> None:
    model = bare_model("gpt2")
    model.transformer.save_pretrained(tmp_path)
    configure(tmp_path, architectures=["GPT2LMHeadModel"])
    ck = open_checkpoint(tmp_path)
    weight = model.transformer.h[0].attn.c_attn.weight.detach()
    assert torch.equal(ck.tensor("transformer.h.0.attn.c_attn.weight"), weight)
    assert torch.equal(ck.weight("transformer.h.0.attn.c_attn"), weight.T)


def test_state_dict_loads_into_the_model(tmp_path: Path) -> None:
    ck = open_checkpoint(write_gptq(tmp_path))
    model = AutoModelForCausalLM.from_config(ck.config)
    missing, unexpected = model.load_state_dict({name: ck.tensor(name) for name in ck.names()}, strict=False)
    assert (missing, unexpected) == ([], [])


def test_fingerprint_follows_content(tmp_path: Path) -> None:
    first, second = write("llama", tmp_path / "a"), write("llama", tmp_path / "b")
    assert open_checkpoint(first).fingerprint() == open_checkpoint(second).fingerprint()
    edit(second, lambda tensors: tensors["model.norm.weight"][0].add_(1))
    assert open_checkpoint(first).fingerprint() != open_checkpoint(second).fingerprint()


def test_missing_paths_are_told_from_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a path must not touch the network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    for path in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "absent", "owner/model.gguf", "a/b/c"):
        with pytest.raises(InputError, match="does not exist"):
            interp.open_checkpoint(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="its parent directory does"):
        open_checkpoint("checkpoints/llama")


def test_hub_ids_download_no_pickles_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        assert hub_id == "owner/model"
        files = [
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "pytorch_model.bin",
            "model.py",
        ]
        kept = list(filter_repo_objects(files, allow_patterns=allow_patterns))
        assert kept == files[:4]
        return str(write("llama", tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_checkpoint("owner/model").format == "dense"


def test_offline_hub_id_is_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="No path is called 'owner/model', and as a hub id it could not be downloaded"):
        open_checkpoint("owner/model")


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt is a file that is not a \.gguf"):
        open_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('["llama"]')
    with pytest.raises(InputError, match="holds a JSON list"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"config\.json has the model_type None"):
        open_checkpoint(configure(tmp_path, model_type=None))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="holds no safetensors file"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle, which is not opened"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 30_000])
def test_truncated_safetensors(keep: int, tmp_path: Path) -> None:
    file = write("llama", tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        open_checkpoint(tmp_path)


def test_missing_shards_and_tensors(tmp_path: Path) -> None:
    whole = write("llama", tmp_path / "whole", shard="20KB")
    shards = sorted(whole.glob("*.safetensors"))
    assert len(shards) > 2

    without = Path(shutil.copytree(whole, tmp_path / "without"))
    (without / shards[1].name).unlink()
    with pytest.raises(InputError, match=rf"The shard .*{shards[1].name} is missing"):
        open_checkpoint(without)
    (without / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=rf"The shard .*{shards[1].name} is missing"):  # the numbering tells
        open_checkpoint(without)

    lying = Path(shutil.copytree(whole, tmp_path / "lying"))
    tensors = load_file(lying / shards[0].name)
    dropped = next(iter(tensors))
    save_file({name: t for name, t in tensors.items() if name != dropped}, lying / shards[0].name)
    with pytest.raises(InputError, match=rf"'{dropped}' is missing from .*{shards[0].name}"):
        open_checkpoint(lying)

    partial = edit(write("llama", tmp_path / "partial"), lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(InputError, match=rf"'model\.layers\.1\.mlp\.up_proj\.weight' is missing from {partial}"):
        open_checkpoint(partial)


@pytest.mark.parametrize(
    "file",
    [
        *("../elsewhere.safetensors", "/etc/elsewhere.safetensors", "sub/elsewhere.safetensors", "..", ".", ""),
        *("config.json", "a\\b.safetensors", "a\0.safetensors", "a" * 300 + ".safetensors"),
    ],
)
def test_an_index_names_files_beside_it_only(file: str, tmp_path: Path) -> None:
    whole = write("llama", tmp_path / "model", shard="20KB")
    shutil.copy(next(whole.glob("*.safetensors")), tmp_path / "elsewhere.safetensors")
    index = whole / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["model.norm.weight"] = file
    index.write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"says that the tensor 'model\.norm\.weight' is in .*plain name"):
        open_checkpoint(whole)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(index: str, tmp_path: Path) -> None:
    (write("llama", tmp_path) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"index\.json is not a safetensors index|index\.json names no tensor"):
        open_checkpoint(tmp_path)


def test_an_index_that_names_another_shard(tmp_path: Path) -> None:
    whole = write("llama", tmp_path, shard="20KB")
    index = whole / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    name, right = next(iter(said["weight_map"].items()))
    other = next(file for file in said["weight_map"].values() if file != right)
    index.write_text(json.dumps({"weight_map": said["weight_map"] | {name: other}}))
    with pytest.raises(InputError, match=rf"'{name}' is missing from .*{other}, where"):
        open_checkpoint(whole)


def test_shards_numbered_beyond_all_bounds(tmp_path: Path) -> None:
    file = write("llama", tmp_path) / "model.safetensors"
    for total, message in (("999999999", r"00000001-of-999999999\.safetensors|is missing"), ("000000000", "no files")):
        file = file.rename(tmp_path / f"model-000000001-of-{total}.safetensors")
        with pytest.raises(InputError, match=message):
            open_checkpoint(tmp_path)


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Put what `change` makes of a safetensors header in front of the data; a text is put there as it is."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    changed = change(json.loads(content[8:start]))
    header = (changed if isinstance(changed, str) else json.dumps(changed)).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])


def moved(header: dict[str, Any], by: int) -> dict[str, Any]:
    """The last tensor's data begin and end so many bytes later."""
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    return header | {last: header[last] | {"data_offsets": [offset + by for offset in header[last]["data_offsets"]]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: moved(header, -4), "is damaged"),  # overlaps its neighbour
        (lambda header: moved(header, 4), "is damaged"),  # beyond the file
        (lambda header: moved(header, 2**63), "is damaged"),
        (
            lambda header: header | {"more": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
            "damaged",
        ),
        (lambda header: header | {"more": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, "is damaged"),
        (lambda header: header | {"more": 5}, "is damaged"),
        (
            lambda header: (
                json.dumps(header)[:-1] + ', "lm_head.weight": ' + json.dumps(header["lm_head.weight"]) + "}"
            ),
            "the key 'lm_head.weight' is there more than once",
        ),
        (lambda _: "[" * 100_000, "is damaged"),
        (lambda _: "[]", "is damaged"),
    ],
)
def test_headers_of_safetensors_that_cannot_be(change: Any, message: str, tmp_path: Path) -> None:
    rewrite_header(write("llama", tmp_path) / "model.safetensors", change)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "model.gguf"])
def test_pipes_are_not_read(name: str, tmp_path: Path) -> None:
    write("llama", tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    path = tmp_path / name if name.endswith(".gguf") else tmp_path
    with pytest.raises(InputError, match=r"pipe, a socket or a device|has no config\.json"):
        open_checkpoint(path)


def test_shapes_that_contradict_the_config(tmp_path: Path) -> None:
    configure(write("llama", tmp_path), intermediate_size=64)
    with pytest.raises(InputError, match=r"'model\.layers\.0\.mlp\.gate_proj\.weight' of .* has shape \[48, 32\]"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"hidden_size": -32},
        {"hidden_act": "mystery"},
        {"hidden_size": None},
        {"vocab_size": 2**31},
        {"vocab_size": True},
        {"num_key_value_heads": 0},
        {"head_dim": 2.5},
        {"rms_norm_eps": float("inf")},
        {"rms_norm_eps": -1e-6},
        {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1e9}},
        {"rope_parameters": ["default"]},
        {"dtype": "int8"},
        {"dtype": "save"},  # a function of torch
        {"dtype": ["float16"]},
        {"pad_token_id": "2"},
        {"pad_token_id": 2**40},
        {"eos_token_id": [1, None]},
        {"layer_types": ["mystery"]},
        {"num_hidden_layers": 10**9},
    ],
)
def test_impossible_configs_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is not a usable model config"):
        open_checkpoint(configure(write("llama", tmp_path), **settings))


@pytest.mark.parametrize(("said", "layers"), [(10**3, 10**3), (4, 4), (2, 2), (None, 32)])
def test_blocks_are_counted_before_a_model_is_built(said: int | None, layers: int, tmp_path: Path) -> None:
    """Three are there: a model of a thousand takes seconds, one of two would be measured without its last block."""
    message = rf"config\.json describes {layers} blocks, and the tensors belong to 3"
    configure(write("llama", tmp_path), num_hidden_layers=said)
    if said is None:
        config = json.loads((tmp_path / "config.json").read_text())
        del config["num_hidden_layers"]  # transformers' default
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation_internal": "kernels-community/flash-attn"},
        {"attn_implementation": {"": "flash_attention_2"}},
        {"experts_implementation": "kernels-community/experts"},
        {"num_labels": 10**9},
        {"id2label": {"0": "a", "b": "c"}, "label2id": 5, "problem_type": "mystery"},
        {"auto_map": {"AutoModelForCausalLM": "elsewhere/model--own.Model"}},
        {"name_or_path": "elsewhere/model", "_name_or_path": "elsewhere/model"},
        {"to_dict": "a method", "attribute_map": [1], "sub_configs": {}, "base_model_tp_plan": 5},
        {"output_hidden_states": "yes", "output_attentions": True, "return_dict": False},
    ],
)
def test_what_config_json_says_of_running_it_is_not_heard(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = open_checkpoint(write("llama", tmp_path)).config
    ck = open_checkpoint(configure(tmp_path, **settings))
    assert ck.config.to_dict() == plain.to_dict()
    assert ck.config._attn_implementation == plain._attn_implementation
    assert len(ck.linears()) == 3 * 7


def test_the_writer_is_named_where_meta_can_be_read(tmp_path: Path) -> None:
    from interp.formats.model_config import writer_of

    assert writer_of({"meta": {"quantizer": ["gptqmodel:7.7.0"]}}) == "gptqmodel:7.7.0"
    assert writer_of({"meta": {"quantizer": "gptqmodel"}}) == "gptqmodel"
    assert [writer_of({"meta": meta}) for meta in (None, 5, [], {}, {"quantizer": 5}, {"quantizer": [5]})] == [None] * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("gptq", "The quantization config of .* is 'gptq'"),
        ([1], r"The quantization config of .* is \[1\]"),
        ([], r"The quantization config of .* is \[\]"),
        (0, "The quantization config of .* is 0"),
        ({"quant_method": ["gptq"]}, r"quantized with \['gptq'\]"),
        ({"quant_method": "gptq", "bits": "four"}, "gives bits as 'four'"),
        ({"quant_method": "gptq", "bits": 4, "group_size": "many"}, "gives group_size as 'many'"),
    ],
)
def test_impossible_quantization_configs_are_refused(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(configure(write_gptq(tmp_path), quantization_config=settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "declares bitsandbytes, but holds no packed tensors",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "declares fp8, but holds no packed tensors"),
        ({"quantization_config": {"quant_method": "mystery"}}, "quantized with 'mystery'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "declares gptq, but holds no packed tensors"),
        ({"num_experts": 8, "model_type": "qwen2_moe"}, "mixture-of-experts model .* of the model_type .qwen2_moe."),
        ({"model_type": "bloom"}, "architecture 'bloom' is not supported"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, r"asks to run its own code \(auto_map\)"),
    ],
)
def test_unsupported_models_are_refused_by_name(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(configure(write("llama", tmp_path), **settings))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.layers.0.mlp.up_proj.weight.absmax",
            r"'model\.layers\.0\.mlp\.up_proj\.weight\.absmax' .* 0 quant_state",
        ),
        ("model.layers.0.mlp.up_proj.SCB", r"up_proj\.weight' of .* has type torch\.float32\. Expected torch\.int8"),
        ("model.layers.0.mlp.act.scales", "shows that the checkpoint is AWQ with scaled activations"),
    ],
)
def test_stray_tensors_of_other_formats_are_named(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(edit(write("llama", tmp_path), lambda tensors: tensors.update({name: torch.ones(4)})))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_whole_numbers_are_no_dense_weights(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    edit(write("llama", tmp_path), lambda tensors: tensors.update({name: (tensors[name] * 100).to(dtype)}))
    with pytest.raises(InputError, match=rf"'{name}' of .*model\.safetensors has the type {dtype}"):
        open_checkpoint(tmp_path)


def test_unknown_tensor_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tensor 'model\.nonsense'"):
        open_checkpoint(write("llama", tmp_path)).tensor("model.nonsense")
    edit(tmp_path, lambda tensors: tensors.update({"model.layers.0.extra.weight": torch.ones(3)}))
    assert [w.startswith("1 tensors of") and "extra.weight" in w for w in open_checkpoint(tmp_path).warnings] == [True]


def test_a_large_layer_takes_well_under_a_second() -> None:
    from interp.formats.gptq import dequantize_gptq

    qweight = torch.randint(-(2**31), 2**31 - 1, (512, 4096)).int()
    qzeros = torch.randint(-(2**31), 2**31 - 1, (32, 512)).int()
    scales, g_idx = torch.rand(32, 4096).half(), torch.arange(4096) // 128
    dequantize_gptq(qweight, qzeros, scales, g_idx, 4, 1)
    start = time.process_time()
    dequantize_gptq(qweight, qzeros, scales, g_idx, 4, 1)
    assert time.process_time() - start < 3  # 0.2 s on an idle core
