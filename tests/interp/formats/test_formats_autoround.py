"""AutoRound's label: linears that its own layers packed, and checkpoints under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.autoround import translate
from interp.formats.huggingface import PACKED_FORMATS
from interp.formats.packed import PackedModule
from interp.formats.shards import Shards
from tests.packed_files import dense, edit, gptq_tensors, random_linear, set_quantization, write_awq, write_gptq
from tests.packed_files import label_autoround as label

FILES = Path(__file__).parents[2] / "quantizer_files" / "auto_round"
NAME = "model.layers.1.mlp.down_proj"
CASES = [
    "auto_round_2_asym",
    "auto_round_3_asym",
    "auto_round_4_asym",
    "auto_round_8_asym",
    "auto_round_auto_awq_4_asym",
    "auto_round_auto_awq_4_sym",
    "auto_round_auto_gptq_2_sym",
    "auto_round_auto_gptq_4_sym",
    "auto_round_gptqmodel_4_asym",
]


def test_every_linear_of_the_file_is_a_case() -> None:
    with safe_open(FILES / "model.safetensors", "pt") as file:
        assert sorted(json.loads(file.metadata()["cases"])) == CASES


@pytest.mark.parametrize("case", CASES)
def test_linears_that_autoround_packed(case: str) -> None:
    with safe_open(FILES / "model.safetensors", "pt") as file:
        written = json.loads(file.metadata()["cases"])[case]
    settings = translate(FILES, written | {"quant_method": "auto-round"})
    shards = Shards(FILES)
    expected = shards.read(f"{case}.expected")
    module = PackedModule(case, shards, settings, (expected.shape[0], expected.shape[1]))
    (layout,) = PACKED_FORMATS[settings["quant_method"]]
    layout.check(module)
    layout.require_all(module)
    assert torch.equal(layout.dequantize(module), expected)
    described = layout.describe(module)
    assert (described.facts["bits"], described.facts["group_size"], described.warnings) == (written["bits"], 32, [])


@pytest.mark.parametrize(
    ("packing", "version"), [("auto_round:auto_gptq", 1), ("auto_round", 2), ("auto_round:gptqmodel", 2)]
)
def test_checkpoints_packed_as_gptq(packing: str, version: int, tmp_path: Path) -> None:
    ck = open_checkpoint(label(write_gptq(tmp_path, version=version), packing))
    assert (ck.format, ck.quantization["version"], ck.quantization["writer"]) == ("gptq", version, "auto_round:0.16.1")
    for name in ck.linears():
        assert torch.equal(ck.tensor(f"{name}.weight"), dense(*random_linear(*ck.weight_shape(name)[::-1], 16, 4)))


@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_checkpoints_packed_as_awq(method: str, tmp_path: Path) -> None:
    ck = open_checkpoint(label(write_awq(tmp_path), "auto_round:auto_awq", quant_method=method))
    assert ck.format == "awq"
    for name in ck.linears():
        assert torch.equal(ck.tensor(f"{name}.weight"), dense(*random_linear(*ck.weight_shape(name)[::-1], 16, 4)))


def test_other_bits_and_groups_of_one_linear(tmp_path: Path) -> None:
    codes, zeros, scales, g_idx = random_linear(48, 32, 24, 8)
    own = gptq_tensors(codes, zeros, scales, g_idx, 8, 2)
    write_gptq(tmp_path, version=2)
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.{suffix}": tensor for suffix, tensor in own.items()}))
    label(tmp_path, "auto_round", extra_config={NAME: {"bits": 8, "group_size": 24}})
    ck = open_checkpoint(tmp_path)
    assert torch.equal(ck.tensor(f"{NAME}.weight"), dense(codes, zeros, scales, g_idx))
    assert np.isclose(ck.linear_bits(NAME), 8 + (16 + 8) / 24 + 32 / 32)
    set_quantization(tmp_path, extra_config=None)
    with pytest.raises(InputError, match=rf"'{NAME}\.scales' of .* has 2 groups"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"packing_format": "auto_round:fp8_static"},
            "packing_format = 'auto_round:fp8_static', which is not supported",
        ),
        ({"packing_format": ["auto_round"]}, r"packing_format = \"\['auto_round'\]\""),
        ({"data_type": "mx_fp"}, "data_type = 'mx_fp'"),
        ({"act_bits": 8}, "act_bits = '8'.*rounded activations are not measured"),
        ({"rotation_config": {"hadamard": "quarot"}}, "rotation_config = .*a rotated weight"),
        ({"sym": "yes"}, "gives sym as 'yes'"),
        ({"bits": 5}, r"bits = '\[5\]'"),
        ({"extra_config": {NAME: {"bits": 6}}}, r"bits = '\[4, 6\]'"),
        ({"packing_format": "auto_round:auto_awq"}, r"qweight' of .* has shape"),
    ],
)
def test_what_is_not_read_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(label(write_gptq(tmp_path, version=2), "auto_round", **settings))
