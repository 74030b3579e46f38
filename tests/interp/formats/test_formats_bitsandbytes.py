"""bitsandbytes: linears that the library wrote, with its own dequantized weights, and linears packed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.bitsandbytes import BITSANDBYTES_4BIT, BITSANDBYTES_INT8
from interp.formats.packed import PackedModule, layout_of
from interp.formats.shards import Shards
from tests.packed_files import bitsandbytes_4bit, bitsandbytes_dense, edit, random_codes, random_scales
from tests.packed_files import write_bitsandbytes as write

FILES = Path(__file__).parents[2] / "quantizer_files" / "bitsandbytes"
CASES = ("nf4", "fp4", "nf4_nested", "fp4_nested", "nf4_across_rows", "fp4_odd", "nf4_as_bfloat16", "int8")
NAME = "model.layers.1.mlp.down_proj"
STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize("case", CASES)
def test_linears_that_bitsandbytes_wrote(case: str) -> None:
    shards = Shards(FILES)
    expected = shards.read(f"{case}.expected")
    module = PackedModule(case, shards, {}, (expected.shape[0], expected.shape[1]))
    layout = layout_of((BITSANDBYTES_4BIT, BITSANDBYTES_INT8), module)
    layout.check(module)
    layout.require_all(module)
    weight = layout.dequantize(module)
    assert weight.dtype is expected.dtype
    assert torch.equal(weight, expected)
    assert layout.describe(module).facts["version"] == case.partition("_")[0]


@pytest.mark.parametrize("nested", [False, True])
def test_checkpoints_of_four_bits(nested: bool, tmp_path: Path) -> None:
    ck = open_checkpoint(write(tmp_path, "nested" if nested else "nf4"))
    assert ck.format == "bitsandbytes"
    facts = {key: ck.quantization[key] for key in ("bits", "group_size", "version", "nested")}
    assert facts == {"bits": 4, "group_size": 64, "version": "nf4", "nested": nested}
    assert ck.warnings == []
    for name in ck.linears():
        n_out, n_in = shape = ck.weight_shape(name)
        arrays = {key: tensor.numpy() for key, tensor in bitsandbytes_4bit(n_in, n_out, nested).items()}
        assert np.array_equal(ck.tensor(f"{name}.weight").numpy(), bitsandbytes_dense(arrays, shape))
        assert ck.is_quantized(name)


def test_checkpoints_of_eight_bits(tmp_path: Path) -> None:
    ck = open_checkpoint(write(tmp_path, "int8"))
    assert (ck.quantization["bits"], ck.quantization["version"]) == (8, "int8")
    assert ["rounding is in no result here" in warning for warning in ck.warnings] == [True]
    for name in ck.linears():
        n_out, n_in = ck.weight_shape(name)
        exact = random_codes((n_out, n_in), torch.int8).double() * random_scales((n_out,)).double()[:, None] / 127
        torch.testing.assert_close(ck.weight(name, torch.float64), exact, rtol=3e-7, atol=0)


def change_state(directory: Path, **changes: Any) -> Path:
    """Change settings in the JSON of one linear; None takes one out."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        state = json.loads(bytes(tensors[f"{NAME}.{STATE}"].tolist())) | changes
        state = {key: value for key, value in state.items() if value is not None}
        tensors[f"{NAME}.{STATE}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return edit(directory, change)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_type": "int4"}, "quant_type is 'int4'"),
        ({"quant_type": "fp4"}, r"has the quant_type 'fp4'\. Expected 'fp4'"),
        ({"blocksize": 0}, "blocksize is 0"),
        ({"blocksize": 32}, r"weight\.absmax' of .* has shape \[24\]\. Expected \[48\]"),
        ({"blocksize": None}, "blocksize is "),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"shape": [48, 32]}, r"has the shape \[48, 32\]\. Expected \[out, in\] = \[32, 48\]"),
        ({"nested_blocksize": 16}, "has a nested_blocksize. Expected a nested_offset beside it"),
        ({"nested_blocksize": 16, "nested_offset": 0.5}, r"weight\.absmax' of .* has type torch\.float32"),
        ({"surprise": 1}, "surprise is 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(change_state(write(tmp_path), **changes))


@pytest.mark.parametrize(
    ("kind", "suffix", "change", "message"),
    [
        ("nf4", "weight", lambda t: t[:-1].clone(), r"has 767 bytes\. Expected 768 for 1536 weights"),
        ("nf4", "weight", lambda t: t.int(), r"has type torch\.int32"),
        ("nf4", "weight.absmax", lambda t: t * torch.nan, "has 24 NaN or infinite values"),
        ("nf4", "weight.absmax", lambda t: t[:-1].clone(), r"has shape \[23\]\. Expected \[24\]"),
        ("nf4", "weight.quant_map", lambda t: t[:-1].clone(), r"has shape \[15\]\. Expected \[16\]"),
        ("nf4", "weight.quant_map", lambda t: t / 0, "has 16 NaN or infinite values"),
        ("nested", "weight.absmax", lambda t: t.float(), r"has type torch\.float32\. Expected torch\.uint8"),
        ("nested", "weight.nested_absmax", lambda t: t[:-1].clone(), r"has shape \[1\]\. Expected \[2\]"),
        ("nested", "weight.nested_absmax", lambda t: t * torch.inf, "has 2 NaN or infinite values"),
        ("nested", "weight.nested_quant_map", lambda t: t[:16].clone(), r"has shape \[16\]\. Expected \[256\]"),
        ("int8", "SCB", lambda t: t * torch.nan, "has 32 NaN or infinite values"),
        ("int8", "SCB", lambda t: t[:-1].clone(), r"has shape \[31\]\. Expected \[32\]"),
        ("int8", "weight", lambda t: t.half(), r"has type torch\.float16\. Expected torch\.int8"),
        ("int8", "weight", lambda t: t.T.contiguous(), r"has shape \[48, 32\]\. Expected \[32, 48\]"),
        ("int8", "weight_format", lambda t: t + 1, r"has the value 1\. Expected 0, for rows"),
    ],
)
def test_malformed_tensors_are_named(kind: str, suffix: str, change: Any, message: str, tmp_path: Path) -> None:
    key = f"{NAME}.{suffix}"
    edit(write(tmp_path, kind), lambda tensors: tensors.update({key: change(tensors[key])}))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize(
    ("kind", "suffix", "message"),
    [
        ("nf4", "weight", f"'{NAME}.weight' is missing"),
        ("nf4", "weight.absmax", f"'{NAME}.weight' of .* has the type torch.uint8"),
        ("nf4", "weight.quant_map", f"'{NAME}.weight.quant_map' is missing"),
        ("nf4", STATE, "has 0 quant_state tensors beside it"),
        ("nested", "weight.nested_absmax", f"'{NAME}.weight.nested_absmax' is missing"),
        ("nested", "weight.nested_quant_map", f"'{NAME}.weight.nested_quant_map' is missing"),
        ("int8", "SCB", f"'{NAME}.weight' of .* has the type torch.int8"),
    ],
)
def test_missing_tensors_are_named(kind: str, suffix: str, message: str, tmp_path: Path) -> None:
    edit(write(tmp_path, kind), lambda tensors: tensors.pop(f"{NAME}.{suffix}"))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


def test_settings_that_are_no_json_and_a_config_that_says_otherwise(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has the quant_type 'nf4'\. Expected 'fp4', as the config says"):
        open_checkpoint(write(tmp_path, bnb_4bit_quant_type="fp4"))
    edit(write(tmp_path), lambda tensors: tensors[f"{NAME}.{STATE}"].add_(1))
    with pytest.raises(InputError, match=r"is not (valid|usable) JSON"):
        open_checkpoint(tmp_path)
