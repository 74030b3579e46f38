"""HQQ: linears that hqq wrote, with its own dequantized weights, and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.hqq import HQQ
from interp.formats.packed import PackedModule
from interp.formats.shards import Shards
from tests.packed_files import edit, hqq_dense, hqq_tensors
from tests.packed_files import write_hqq as write

FILES = Path(__file__).parents[2] / "quantizer_files" / "hqq"
NAME = "model.layers.1.mlp.down_proj"
WIDTHS = ("8", "6", "5", "4", "3", "2", "1p58", "1")
LINEARS = [
    *(f"axis{axis}_{bits}" for axis in (0, 1) for bits in WIDTHS),
    *("words_as_floats_4", "words_as_floats_3", "single_4"),
]


@pytest.mark.parametrize("name", LINEARS)
def test_linears_that_hqq_wrote(name: str) -> None:
    shards = Shards(FILES)
    expected = shards.read(f"{name}.expected")
    module = PackedModule(name, shards, {}, (16, 48))
    HQQ.check(module)
    HQQ.require_all(module)
    HQQ.verify(module)  # type: ignore[misc]
    weight = HQQ.dequantize(module)
    assert weight.dtype is expected.dtype
    assert torch.equal(weight, expected)
    facts = HQQ.describe(module).facts
    assert str(facts["bits"]).replace(".", "p") == name.rpartition("_")[2]
    assert facts["group_size"] == 16


@pytest.mark.parametrize("axis", [0, 1])
def test_checkpoints(axis: int, tmp_path: Path) -> None:
    ck = open_checkpoint(write(tmp_path, axis))
    assert (ck.format, ck.quantization["bits"], ck.quantization["version"]) == ("hqq", 4, f"axis {axis}")
    assert ck.warnings == []
    for name in ck.linears():
        n_out, n_in = ck.weight_shape(name)
        packed = {key: tensor.numpy() for key, tensor in hqq_tensors(n_in, n_out, axis).items()}
        assert torch.equal(ck.tensor(f"{name}.weight"), torch.from_numpy(hqq_dense(packed, (n_out, n_in))))
        assert ck.linear_bits(name) == 4 + 2 * 16 / 16  # settings are no part of the weight


def text(value: str) -> Any:
    return lambda _: torch.tensor(list(value.encode()), dtype=torch.uint8)


def number(value: float, dtype: torch.dtype = torch.int32) -> Any:
    return lambda _: torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("W_q", lambda t: t[:-1].clone(), r"has shape \[47, 16\]\. Expected \[48, 16\]"),
        ("W_q", lambda t: t.int(), r"has type torch\.int32\. Expected torch\.uint8 for 4 bits"),
        ("W_q", lambda t: t.long(), r"has type torch\.int64"),
        ("scale", lambda t: t * torch.nan, "has 96 NaN or infinite values"),
        ("scale", lambda t: t * 0, "has nothing but zeros"),
        ("scale", lambda t: t.T.contiguous(), r"has shape \[1, 96\]\. Expected \[96, 1\]"),
        ("zero", lambda t: t / 0, "has 96 NaN or infinite values"),
        ("zero", lambda t: t[:-1].clone(), r"has shape \[95, 1\]"),
        ("zero", lambda t: t.byte(), r"has type torch\.uint8"),
        ("nbits", number(7), "packing' of .* has the packing '4bit_u8' of 7 bits"),
        ("nbits", number(4, torch.uint8), r"has type torch\.uint8"),
        ("packing", text("4bit_32"), "has the packing '4bit_32' of 4 bits"),
        ("axis", number(2), "has the value 2"),
        ("axis", number(0), r"has the value 0\. Expected 1, as the config says"),
        ("group_size", number(32), r"has the value 32\. Expected 16, as the config says"),
        ("group_size", number(0), "has the value 0"),
        ("group_size", lambda t: torch.tensor(torch.nan), "has the value nan"),
        ("group_size", lambda t: torch.tensor(16.5), "has the value 16.5"),
        ("shape", lambda t: t.flip(0), r"has the shape \[48, 32\]\. Expected \[32, 48\]"),
        ("compute_dtype", text("torch.int8"), "has the type 'torch.int8'"),
        ("compute_dtype", text("__import__('os')"), "has the type "),
        ("quant_scale", number(1, torch.uint8), "has 1: its scales or zero points are quantized themselves"),
        ("channel_wise", number(0, torch.uint8), "has 0: one scale for the whole weight"),
    ],
)
def test_malformed_tensors_are_named(suffix: str, change: Any, message: str, tmp_path: Path) -> None:
    key = f"{NAME}.{suffix}"
    edit(write(tmp_path), lambda tensors: tensors.update({key: change(tensors[key])}))
    message = message if "' of " in message else rf"'{NAME}\.{suffix}' of .*model\.safetensors {message}"
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize("suffix", ["scale", "zero", "nbits", "group_size", "axis", "shape", "packing"])
def test_missing_tensors_are_named(suffix: str, tmp_path: Path) -> None:
    edit(write(tmp_path), lambda tensors: tensors.pop(f"{NAME}.{suffix}"))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' is missing"):
        open_checkpoint(tmp_path)


def test_quantized_scales_and_scales_kept_apart_are_refused_by_name(tmp_path: Path) -> None:
    edit(write(tmp_path), lambda tensors: tensors.update({f"{NAME}.scale_q": torch.ones(1)}))
    with pytest.raises(InputError, match="shows that the checkpoint is HQQ with quantized scales"):
        open_checkpoint(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.zero_scale": tensors.pop(f"{NAME}.scale_q")}))
    with pytest.raises(InputError, match="HQQ with scales that were kept apart"):
        open_checkpoint(tmp_path)


def test_settings_of_linears_with_one_name(tmp_path: Path) -> None:
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    said = config["quantization_config"]["quant_config"]
    config["quantization_config"]["quant_config"] = {"mlp.down_proj": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).format == "hqq"
    said["weight_quant_params"]["nbits"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"down_proj\.nbits' of .* has the value 4\. Expected 8, as the config says"):
        open_checkpoint(tmp_path)
