from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.compressed import dequantize_packed
from tests.packed_files import dense, edit, pack_columns, pack_rows, random_linear, write_packed

NAME = "model.layers.2.mlp.down_proj"


def compressed_tensors(
    n_in: int, n_out: int, group_size: int = 16, bits: int = 4, symmetric: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """The pack-quantized layout; it stores signed codes and zeros plus 2^(bits-1), which is what these are."""
    codes, zeros, scales, _ = random_linear(n_in, n_out, group_size, bits, seed)
    packed = {
        "weight_packed": pack_columns(codes.T, bits),
        "weight_scale": torch.from_numpy(scales.T.copy()),
        "weight_shape": torch.tensor([n_out, n_in]),
    }
    return packed if symmetric else packed | {"weight_zero_point": pack_rows(zeros.T, bits)}


def settings_for(bits: int = 4, symmetric: bool = False, group_size: int = 16, **more: object) -> dict[str, object]:
    weights = {"num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": group_size, "type": "int"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups, **more}


@settings(deadline=None)
@example(bits=4, symmetric=False, groups=2, group_size=1, n_out=1, shuffled=False, seed=0)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    groups=st.integers(1, 5),
    group_size=st.integers(1, 20),
    n_out=st.integers(1, 40),
    shuffled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_width(
    bits: int, symmetric: bool, groups: int, group_size: int, n_out: int, shuffled: bool, seed: int
) -> None:
    n_in = groups * group_size
    codes, zeros, scales, g_idx = random_linear(n_in, n_out, group_size, bits, seed)
    zeros = np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros
    g_idx = np.random.default_rng(seed).permutation(g_idx) if shuffled else g_idx
    tensors = compressed_tensors(n_in, n_out, group_size, bits, symmetric, seed)
    weight = dequantize_packed(
        tensors["weight_packed"],
        tensors["weight_scale"],
        tensors.get("weight_zero_point"),
        torch.from_numpy(g_idx) if shuffled else None,
        (n_out, n_in),
        bits,
    )
    assert weight.dtype is torch.float16
    assert torch.equal(weight, dense(codes, zeros, scales, g_idx))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_checkpoints(bits: int, symmetric: bool, tmp_path: Path) -> None:
    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        return compressed_tensors(n_in, n_out, 16, bits, symmetric)

    ck = open_checkpoint(write_packed(tmp_path, pack, settings_for(bits, symmetric)))
    assert ck.format == "compressed-tensors"
    facts = {key: ck.quantization[key] for key in ("bits", "group_size", "symmetric", "act_order")}
    assert facts == {"bits": bits, "group_size": 16, "symmetric": symmetric, "act_order": False}
    for name in ck.linears():
        codes, zeros, scales, g_idx = random_linear(*ck.weight_shape(name)[::-1], 16, bits)
        zeros = np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros
        assert torch.equal(ck.tensor(f"{name}.weight"), dense(codes, zeros, scales, g_idx))


def test_group_index(tmp_path: Path) -> None:
    write_packed(tmp_path, compressed_tensors, settings_for())
    consecutive = open_checkpoint(tmp_path).weight(NAME)
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.weight_g_idx": torch.full((48,), -1, dtype=torch.int32)}))
    assert torch.equal(open_checkpoint(tmp_path).weight(NAME), consecutive)
    order = np.random.default_rng(0).permutation(np.arange(48) // 16)
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.weight_g_idx": torch.from_numpy(order).int()}))
    codes, zeros, scales, _ = random_linear(48, 32, 16, 4)
    assert torch.equal(open_checkpoint(tmp_path).weight(NAME, torch.float16), dense(codes, zeros, scales, order))
    edit(tmp_path, lambda tensors: tensors[f"{NAME}.weight_g_idx"].add_(1))
    with pytest.raises(InputError, match=rf"'{NAME}\.weight_g_idx' of .* has groups 1 to 3"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("weight_scale", lambda t: t * torch.nan, "has 96 NaN or infinite values"),
        ("weight_scale", lambda t: t[:-1].clone(), r"has shape \[31, 3\]"),
        ("weight_packed", lambda t: t[:-1].clone(), r"has shape \[31, 6\]"),
        ("weight_shape", lambda t: t + 1, r"has the value \[33, 49\]"),
        ("weight_zero_point", lambda t: t[:-1].clone(), r"has shape \[3, 3\]"),
    ],
)
def test_malformed_tensors_are_named(suffix: str, change: object, message: str, tmp_path: Path) -> None:
    write_packed(tmp_path, compressed_tensors, settings_for())
    edit(tmp_path, lambda tensors: tensors.update({f"{NAME}.{suffix}": change(tensors[f"{NAME}.{suffix}"])}))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize("suffix", ["weight_scale", "weight_zero_point"])
def test_missing_tensors_are_named(suffix: str, tmp_path: Path) -> None:
    edit(write_packed(tmp_path, compressed_tensors, settings_for()), lambda tensors: tensors.pop(f"{NAME}.{suffix}"))
    with pytest.raises(InputError, match=rf"'{NAME}\.{suffix}' is missing"):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"format": "float-quantized"}, "format 'float-quantized'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity format 'sparse-24-bitmask'"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "the transforms 'some'"),
        ({"config_groups": ["W4A16"]}, r"gives config_groups as \['W4A16'\]"),
    ],
)
def test_other_layouts_are_refused_by_name(more: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        open_checkpoint(write_packed(tmp_path, compressed_tensors, settings_for(**more)))
