"""Fine-grained FP8: against transformers, compressed-tensors and the definition of the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.float8 import dequantize_blocks
from tests.packed_files import blocks, e4m3, edit, random_codes, random_scales, write_float8
from tests.tiny_models import write

NAME = "model.layers.1.mlp.down_proj"
FLOAT8 = torch.float8_e4m3fn


def test_every_number_of_eight_bits() -> None:
    stored = np.arange(256, dtype=np.uint8)
    values = torch.from_numpy(stored).view(FLOAT8).float().numpy()
    assert np.array_equal(values, e4m3(stored), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_whole_blocks_are_what_transformers_makes_of_them(dtype: torch.dtype) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes, scales = random_codes((256, 384), FLOAT8), random_scales((2, 3), dtype)
    theirs = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    assert torch.equal(dequantize_blocks(codes, scales.float(), (128, 128)), theirs)


@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    block=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 99),
)
def test_smaller_blocks_at_the_edges(shape: tuple[int, int], block: tuple[int, int], seed: int) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    codes, scales = random_codes(shape, FLOAT8, seed), random_scales(grid, seed=seed)
    weight = dequantize_blocks(codes, scales, block)
    arguments = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=list(block))
    assert torch.equal(weight, dequantize(codes, scales, None, arguments))
    expected = e4m3(codes.view(torch.uint8).numpy()) * blocks(scales.numpy(), block, shape)
    assert np.array_equal(weight.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_checkpoints(dtype: torch.dtype, tmp_path: Path) -> None:
    ck = open_checkpoint(write_float8(tmp_path, dtype=dtype))
    assert ck.format == "fp8"
    assert (ck.quantization["bits"], ck.quantization["block_rows"], ck.quantization["group_size"]) == (8, 16, 24)
    assert ["rounding is in no result here" in warning for warning in ck.warnings] == [True]
    assert "rounding is in no result here" in str(ck.summary())
    for name in ck.linears():
        n_out, n_in = shape = ck.weight_shape(name)
        scales = random_scales((-(-n_out // 16), -(-n_in // 24)), dtype).float().numpy()
        codes = random_codes(shape, FLOAT8).view(torch.uint8).numpy()
        assert np.array_equal(ck.weight(name).numpy(), e4m3(codes) * blocks(scales, (16, 24), shape))
        assert ck.is_quantized(name)
    assert ck.compute_dtype is torch.float16
    assert 8 < ck.bits_per_weight() < 8.3


def test_one_scale_for_all(tmp_path: Path) -> None:
    write_float8(tmp_path, block=(1000, 1000), weight_block_size=None)
    whole = open_checkpoint(tmp_path).weight(NAME)
    key = f"{NAME}.weight_scale_inv"
    edit(tmp_path, lambda tensors: tensors.update({key: tensors[key].reshape(())}))
    assert torch.equal(open_checkpoint(tmp_path).weight(NAME), whole)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("weight_scale_inv", lambda t: t * torch.nan, "has 4 NaN or infinite values"),
        ("weight_scale_inv", lambda t: t * 0, "has nothing but zeros"),
        ("weight_scale_inv", lambda t: t[:-1].clone(), r"has shape \[1, 2\]\. Expected \[2, 2\]: \[32, 48\] in blocks"),
        ("weight_scale_inv", lambda t: t[:0].clone(), r"has shape \[0, 2\]"),
        ("weight_scale_inv", lambda t: t.int(), r"has type torch\.int32"),
        (
            "weight_scale_inv",
            lambda t: torch.full((2, 2), 255, dtype=torch.uint8),
            "has the byte 255, which is NaN, in 4",
        ),
        ("weight", lambda t: t[:-1].clone(), r"has shape \[31, 48\]\. Expected \[32, 48\]"),
        ("weight", lambda t: t.to(torch.float8_e5m2), r"has type torch\.float8_e5m2\. Expected torch\.float8_e4m3fn"),
        ("weight", lambda t: t.half(), r"has type torch\.float16\. Expected torch\.float8_e4m3fn"),
        (
            "weight",
            lambda t: torch.full((32, 48), 127, dtype=torch.uint8).view(FLOAT8),
            "has 1536 weights that are NaN",
        ),
    ],
)
def test_malformed_tensors_are_named(suffix: str, change: Any, message: str, tmp_path: Path) -> None:
    write_float8(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.{suffix}": change(tensors[f"{NAME}.{suffix}"])}))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize("size", [None, 128, [128], [16, 0], [16, -1], [16.0, 24.0], [True, 24], "16", [2**40, 1]])
def test_a_block_size_that_cannot_be(size: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gives weight_block_size as .*two positive whole numbers"):
        open_checkpoint(write_float8(tmp_path, weight_block_size=size))


def test_the_block_size_is_the_configs(tmp_path: Path) -> None:
    """As of a weight of 200 × 200 with 2 × 2 scales of blocks of 128: shapes alone would say 100."""
    with pytest.raises(InputError, match=r"Expected \[3, 2\]: \[32, 32\] in blocks of \[12, 24\], as the config says"):
        open_checkpoint(write_float8(tmp_path, weight_block_size=[12, 24]))


@pytest.mark.parametrize("suffix", ["weight", "weight_scale_inv"])
def test_missing_tensors_are_named(suffix: str, tmp_path: Path) -> None:
    edit(write_float8(tmp_path), lambda tensors: tensors.pop(f"{NAME}.{suffix}"))
    message = f"'{NAME}.weight' of .* has the type torch.float8_e4m3fn, and no scale is beside it"
    with pytest.raises(InputError, match=message if suffix != "weight" else f"'{NAME}.weight' is missing"):
        open_checkpoint(tmp_path)


def test_numbers_without_any_scale_and_a_method_without_numbers(tmp_path: Path) -> None:
    key = f"{NAME}.weight"
    edit(write("llama", tmp_path), lambda tensors: tensors.update({key: tensors[key].to(FLOAT8)}))
    with pytest.raises(InputError, match="and no scale is beside it"):
        open_checkpoint(tmp_path)
