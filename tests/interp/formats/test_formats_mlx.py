"""MLX's affine quantization: linears that MLX wrote, with its own dequantized weights, and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.mlx import MLX
from interp.formats.packed import PackedModule
from interp.formats.shards import Shards
from tests.packed_files import edit, mlx_tensors, random_linear
from tests.packed_files import write_mlx as write

FILES = Path(__file__).parents[2] / "quantizer_files" / "mlx"
NAME = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_linears_that_mlx_wrote(bits: int, dtype: str) -> None:
    shards = Shards(FILES)
    expected = shards.read(f"{dtype}_{bits}.expected")
    module = PackedModule(f"{dtype}_{bits}", shards, {"bits": bits, "group_size": 32}, (8, 96))
    MLX.check(module)
    MLX.require_all(module)
    weight = MLX.dequantize(module)
    assert weight.dtype is expected.dtype is getattr(torch, dtype)
    assert torch.equal(weight, expected)
    assert MLX.describe(module).facts["bits"] == bits


def by_the_formula(n_in: int, n_out: int, bits: int = 4) -> torch.Tensor:
    codes, zeros, scales, group = random_linear(n_in, n_out, 16, bits)
    return torch.from_numpy((codes.astype(np.float16) * scales[group] + (-scales * zeros.astype(np.float16))[group]).T)


def test_checkpoints(tmp_path: Path) -> None:
    ck = open_checkpoint(write(tmp_path))
    assert (ck.format, ck.quantization["bits"], ck.quantization["group_size"]) == ("mlx", 4, 16)
    assert ck.warnings == []
    assert not hasattr(ck.config, "quantization")
    for name in ck.linears():
        assert torch.equal(ck.tensor(f"{name}.weight"), by_the_formula(*ck.weight_shape(name)[::-1]))


def test_other_bits_of_one_linear(tmp_path: Path) -> None:
    write(tmp_path, **{NAME: {"bits": 6, "group_size": 16}})
    own = mlx_tensors(48, 32, 6)
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.{suffix}": tensor for suffix, tensor in own.items()}))
    assert torch.equal(open_checkpoint(tmp_path).tensor(f"{NAME}.weight"), by_the_formula(48, 32, 6))


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("weight", lambda t: t.view(torch.int32), r"has type torch\.int32\. Expected torch\.uint32"),
        ("weight", lambda t: t[:, :-1].clone(), r"has shape \[32, 5\]"),
        ("weight", lambda t: t[:-1].clone(), r"has shape \[31, 6\]\. Expected \[32, 6\]"),
        ("scales", lambda t: t * torch.nan, "has 96 NaN or infinite values"),
        ("scales", lambda t: t[:-1].clone(), r"has shape \[31, 3\]\. Expected \[32, 3\]"),
        ("biases", lambda t: t * torch.inf, "has 9. NaN or infinite values"),
        ("biases", lambda t: t[:, :-1].clone(), r"has shape \[32, 2\]\. Expected \[32, 3\]"),
        ("biases", lambda t: t.float(), r"has type torch\.float32\. Expected torch\.float16"),
    ],
)
def test_malformed_tensors_are_named(suffix: str, change: Any, message: str, tmp_path: Path) -> None:
    key = f"{NAME}.{suffix}"
    edit(write(tmp_path), lambda tensors: tensors.update({key: change(tensors[key])}))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [("scales", "scales' is missing"), ("biases", "has the type torch.uint32"), ("weight", "weight' is missing")],
)
def test_missing_tensors_are_named(suffix: str, message: str, tmp_path: Path) -> None:
    edit(write(tmp_path), lambda tensors: tensors.pop(f"{NAME}.{suffix}"))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 8}, "has bits 4 by its shape. Expected 8, as the config says"),
        ({"group_size": 32}, "has group_size 16 by its shape. Expected 32"),
        ({"mode": "mxfp4"}, "quantized by MLX in the mode 'mxfp4'"),
    ],
)
def test_configs_that_the_tensors_contradict(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(write(tmp_path, **settings))
