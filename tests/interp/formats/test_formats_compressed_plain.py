"""compressed-tensors of one number for each weight: against the package's own compressors and the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from tests.packed_files import blocks, e4m3, edit, plain_settings, plain_tensors, write_packed

NAME = "model.layers.1.mlp.down_proj"
BLOCK = (20, 24)
GRIDS = {
    "tensor": lambda n_out, n_in: (1,),
    "channel": lambda n_out, n_in: (n_out, 1),
    "group": lambda n_out, n_in: (n_out, n_in // 16),
    "block": lambda n_out, n_in: (-(-n_out // BLOCK[0]), -(-n_in // BLOCK[1])),
}
"""Strategy → shape of the scales of a weight [out, in]."""
SIZES: dict[str, dict[str, Any]] = {"group": {"group_size": 16}, "block": {"block_structure": list(BLOCK)}}


def write(
    directory: Path, kind: str, strategy: str, dtype: torch.dtype = torch.bfloat16, symmetric: bool = True
) -> Path:
    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        return plain_tensors(n_in, n_out, kind, GRIDS[strategy](n_out, n_in), dtype, symmetric)

    return write_packed(directory, pack, plain_settings(kind, strategy, symmetric, **SIZES.get(strategy, {})))


def by_the_package(tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme.model_validate(settings["config_groups"]["group_0"])
    return BaseCompressor.get_value_from_registry(settings["format"]).decompress(tensors, scheme)["weight"]


def by_the_formula(tensors: dict[str, torch.Tensor], strategy: str) -> torch.Tensor:
    """(q - z)·s in the dtype of the scales, each weight's scale and zero point looked up by its place."""
    weight, scale = tensors["weight"], tensors["weight_scale"]
    n_out, n_in = shape = tuple(weight.shape)
    sizes = {"tensor": shape, "channel": (1, n_in), "group": (1, 16), "block": BLOCK}[strategy]

    def everywhere(values: torch.Tensor) -> torch.Tensor:
        grid = (-(-n_out // sizes[0]), -(-n_in // sizes[1]))
        return torch.from_numpy(blocks(values.double().numpy().reshape(grid), sizes, shape)).to(scale.dtype)

    codes = weight.view(torch.uint8).numpy() if weight.dtype == torch.float8_e4m3fn else weight.numpy()
    values = torch.from_numpy(e4m3(codes) if codes.dtype == np.uint8 else codes).to(scale.dtype)
    zeros = everywhere(tensors["weight_zero_point"]) if "weight_zero_point" in tensors else 0
    return (values - zeros) * everywhere(scale)


def opened_rightly(directory: Path, strategy: str, settings: dict[str, Any], dtype: torch.dtype) -> Checkpoint:
    ck = open_checkpoint(directory)
    for name in ck.linears():
        n_out, n_in = ck.weight_shape(name)
        weights = settings["config_groups"]["group_0"]["weights"]
        tensors = plain_tensors(n_in, n_out, weights["type"], GRIDS[strategy](n_out, n_in), dtype, weights["symmetric"])
        weight = ck.tensor(f"{name}.weight")
        assert weight.dtype is dtype
        assert torch.equal(weight, by_the_package(tensors, settings))
        assert torch.equal(weight, by_the_formula(tensors, strategy))
    return ck


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("strategy", sorted(GRIDS))
def test_numbers_of_eight_bits(strategy: str, dtype: torch.dtype, tmp_path: Path) -> None:
    settings = plain_settings("float", strategy, **SIZES.get(strategy, {}))
    ck = opened_rightly(write(tmp_path, "float", strategy, dtype), strategy, settings, dtype)
    assert ck.format == "compressed-tensors"
    assert (ck.quantization["bits"], ck.quantization["layout"]) == (8, "float-quantized")
    assert ck.quantization["strategy"] == strategy
    assert ["rounding is in no result here" in warning for warning in ck.warnings] == [True]
    assert 8 < ck.bits_per_weight() < 10.1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
def test_whole_numbers_of_eight_bits(strategy: str, symmetric: bool, tmp_path: Path) -> None:
    settings = plain_settings("int", strategy, symmetric, **SIZES.get(strategy, {}))
    written = write(tmp_path, "int", strategy, symmetric=symmetric)
    ck = opened_rightly(written, strategy, settings, torch.bfloat16)
    assert (ck.quantization["layout"], ck.quantization["symmetric"]) == ("int-quantized", symmetric)
    assert ck.quantization["group_size"] == {"group": 16}.get(strategy, 32)
    assert ["rounding is in no result here" in warning for warning in ck.warnings] == [True]


def test_only_weights_rounded_is_no_warning(tmp_path: Path) -> None:
    settings = plain_settings("float", "channel")
    settings["config_groups"]["group_0"]["input_activations"] = None
    packed = write_packed(tmp_path, lambda n_in, n_out: plain_tensors(n_in, n_out, "float", (n_out, 1)), settings)
    assert open_checkpoint(packed).warnings == []


def test_scales_of_activations_belong_to_a_linear_and_are_no_bits_of_its_weight(tmp_path: Path) -> None:
    ck = open_checkpoint(write(tmp_path, "float", "tensor"))
    warnings, bits = ck.warnings, ck.bits_per_weight()
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.input_scale": torch.ones(1)}))
    assert open_checkpoint(tmp_path).warnings == warnings
    assert open_checkpoint(tmp_path).bits_per_weight() == bits


def test_layouts_side_by_side(tmp_path: Path) -> None:
    """mixed-precision: float-quantized, and int-quantized in one module."""
    settings = plain_settings("float", "channel")
    settings["config_groups"]["group_1"] = plain_settings("int", "channel")["config_groups"]["group_0"]
    settings["format"] = "mixed-precision"
    write_packed(tmp_path, lambda n_in, n_out: plain_tensors(n_in, n_out, "float", (n_out, 1)), settings)
    whole = plain_tensors(48, 32, "int", (32, 1))
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.{suffix}": tensor for suffix, tensor in whole.items()}))
    ck = open_checkpoint(tmp_path)
    assert torch.equal(ck.tensor(f"{NAME}.weight"), by_the_formula(whole, "channel"))
    other = "model.layers.0.mlp.down_proj"
    expected = by_the_formula(plain_tensors(48, 32, "float", (32, 1)), "channel")
    assert torch.equal(ck.tensor(f"{other}.weight"), expected)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("weight_scale", lambda t: t * torch.nan, "has 32 NaN or infinite values"),
        ("weight_scale", lambda t: t * 0, "has nothing but zeros"),
        ("weight_scale", lambda t: t[:-1].clone(), r"has shape \[31, 1\]\. Expected \[32, 1\] or \[32\] for a weight"),
        ("weight_scale", lambda t: t.repeat(1, 2), r"has shape \[32, 2\]"),
        ("weight_scale", lambda t: t.int(), r"has type torch\.int32"),
        ("weight", lambda t: t[:, :-1].clone(), r"has shape \[32, 47\]\. Expected \[32, 48\]"),
        ("weight", lambda t: t.half(), r"has type torch\.float16\. Expected torch\.int8 or torch\.float8_e4m3fn"),
        ("weight", lambda t: (t.view(torch.uint8) | 127).view(t.dtype), "has 1536 weights that are NaN or infinite"),
        ("weight_zero_point", lambda t: torch.zeros(32, 1, dtype=torch.int8), r"has type torch\.int8\. Expected torch"),
        ("weight_zero_point", lambda t: torch.zeros(3, 1).to(torch.float8_e4m3fn), r"has shape \[3, 1\]"),
    ],
)
def test_malformed_tensors_are_named(suffix: str, change: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, "float", "channel")
    key = f"{NAME}.{suffix}"
    edit(tmp_path, lambda tensors: tensors.update({key: change(tensors.get(key, torch.zeros(1)))}))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize(
    ("kind", "symmetric", "suffix", "message"),
    [
        ("float", True, "weight_scale", f"'{NAME}.weight' of .* has the type torch.float8_e4m3fn, and no scale"),
        ("int", True, "weight_scale", f"'{NAME}.weight' of .* has the type torch.int8"),
        ("int", False, "weight_zero_point", f"'{NAME}.weight_zero_point' is missing"),
        ("int", True, "weight", f"'{NAME}.weight' is missing"),
    ],
)
def test_missing_tensors_are_named(kind: str, symmetric: bool, suffix: str, message: str, tmp_path: Path) -> None:
    written = write(tmp_path, kind, "channel", symmetric=symmetric)
    edit(written, lambda tensors: tensors.pop(f"{NAME}.{suffix}"))
    with pytest.raises(InputError, match=message):
        open_checkpoint(written)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_bits", 4, r"'model.*weight' of .* has values from -128 to 127\. Expected -8 to 7, as 4 bits hold"),
        ("type", "float", "type is 'float', and the weight of .* is stored as int"),
        ("strategy", "tensor", r"weight_scale' of .* has shape \[32, 1\]\. Expected \[\] or \[1\] or \[1, 1\]"),
        ("block_structure", [0, 1], r"block_structure\.0 is 0"),
        ("symmetric", False, "weight_zero_point' is missing"),
    ],
)
def test_schemes_that_the_tensors_contradict(key: str, value: Any, message: str, tmp_path: Path) -> None:
    settings = plain_settings("int", "channel")
    settings["config_groups"]["group_0"]["weights"][key] = value
    write_packed(tmp_path, lambda n_in, n_out: plain_tensors(n_in, n_out, "int", (n_out, 1)), settings)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).weight(NAME)


def test_the_order_of_activations_is_refused(tmp_path: Path) -> None:
    settings = plain_settings("int", "group", group_size=16, actorder="group")
    write_packed(tmp_path, lambda n_in, n_out: plain_tensors(n_in, n_out, "int", (n_out, n_in // 16)), settings)
    with pytest.raises(InputError, match=r"order of their activations \(actorder\)"):
        open_checkpoint(tmp_path)


def test_no_config_is_refused(tmp_path: Path) -> None:
    write_packed(tmp_path, lambda n_in, n_out: plain_tensors(n_in, n_out, "int", (n_out, 1)), {})
    with pytest.raises(InputError, match="a quantization config with its scheme"):
        open_checkpoint(tmp_path)
