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
from interp.formats.awq import gemm, gemv, gemv_fast
from tests.packed_files import (
    dense,
    edit,
    pack_awq_gemm,
    pack_columns,
    random_linear,
    set_quantization,
    write_awq,
    write_packed,
)

Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


def gemv_tensors(n_in: int, n_out: int, group_size: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    """The GEMV layout: linear order along the input, groups padded to whole words of zero points."""
    codes, zeros, scales, _ = random_linear(n_in, n_out, group_size, 4, seed)
    padded = -(-len(zeros) // 8) * 8
    padding = ((0, 0), (0, padded - len(zeros)))
    return {
        "qweight": pack_columns(codes.T, 4),
        "qzeros": pack_columns(np.pad(zeros.T, padding), 4),
        "scales": torch.from_numpy(np.pad(scales.T, padding).copy()),
    }


@given(groups=st.integers(1, 6), group_size=st.integers(1, 20), words=st.integers(1, 6), seed=st.integers(0, 99))
def test_gemm(groups: int, group_size: int, words: int, seed: int) -> None:
    codes, zeros, scales, g_idx = random_linear(groups * group_size, 8 * words, group_size, 4, seed)
    weight = gemm(pack_awq_gemm(codes), pack_awq_gemm(zeros), torch.from_numpy(scales))
    assert weight.dtype is torch.float16
    assert torch.equal(weight, dense(codes, zeros, scales, g_idx))


@given(groups=st.integers(1, 20), group_words=st.integers(1, 3), n_out=st.integers(1, 20), seed=st.integers(0, 99))
def test_gemv(groups: int, group_words: int, n_out: int, seed: int) -> None:
    n_in, group_size = groups * group_words * 8, group_words * 8
    tensors = gemv_tensors(n_in, n_out, group_size, seed)
    expected = dense(*random_linear(n_in, n_out, group_size, 4, seed))
    assert torch.equal(gemv(**tensors, group_size=group_size), expected)


def test_gemm_layers_that_gptqmodel_packs_and_dequantizes_itself() -> None:
    pytest.importorskip("gptqmodel")
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm, pack_awq

    codes, zeros, scales, _ = random_linear(128, 96, 32, 4)
    qweight, qzeros = pack_awq(torch.from_numpy(codes).int(), torch.from_numpy(zeros).int(), 4)
    theirs = dequantize_gemm(qweight, qzeros, torch.from_numpy(scales), 4, 32)
    assert torch.equal(gemm(qweight, qzeros, torch.from_numpy(scales)), theirs.T)


@pytest.mark.parametrize("seed", range(3))
def test_gemv_fast_layers_that_gptqmodel_packs(seed: int) -> None:
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.gemv_fast_awq import pack_intweight

    codes, zeros, scales, g_idx = random_linear(128, 32, 64, 4, seed)
    scaled_zeros = -(scales.astype(np.float32) * zeros).astype(np.float16)
    padding = ((0, 8 - len(scales)), (0, 0))
    weight = gemv_fast(
        pack_intweight(torch.from_numpy(codes.T.copy()).int(), interleave=4, kstride=64),
        torch.from_numpy(np.pad(scaled_zeros, padding)),
        torch.from_numpy(np.pad(scales, padding)),
        64,
    )
    exact = codes.astype(np.float64) * scales[g_idx].astype(np.float64) + scaled_zeros[g_idx].astype(np.float64)
    assert np.array_equal(weight.numpy(), exact.astype(np.float16).T)


def test_checkpoints(tmp_path: Path) -> None:
    ck = open_checkpoint(write_awq(tmp_path))
    assert ck.format == "awq"
    assert ck.quantization["version"] == "gemm"
    assert (ck.quantization["bits"], ck.quantization["group_size"]) == (4, 16)
    for name in ck.linears():
        expected = dense(*random_linear(*ck.weight_shape(name)[::-1], 16, 4))
        assert torch.equal(ck.tensor(f"{name}.weight"), expected)
    stored = sum(ck.weight_shape(name)[0] * ck.weight_shape(name)[1] * (4 + (16 + 4) / 16) for name in ck.linears())
    assert ck.bits_per_weight() == pytest.approx(
        stored / sum(ck.weight_shape(name)[0] * ck.weight_shape(name)[1] for name in ck.linears())
    )


def test_layout_is_told_by_shapes_even_for_square_weights(tmp_path: Path) -> None:
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}  # a label that lies
    ck = open_checkpoint(write_packed(tmp_path, gemv_tensors, quantization))
    assert ck.quantization["version"] == "gemv"
    assert ck.weight_shape(Q_PROJ)[0] == ck.weight_shape(Q_PROJ)[1]
    for name in ck.linears():
        expected = dense(*random_linear(*ck.weight_shape(name)[::-1], 16, 4))
        assert torch.equal(ck.tensor(f"{name}.weight"), expected)


@pytest.mark.parametrize("group_size", [None, 16])
def test_the_groups_of_a_gemv_file_are_counted(group_size: int | None, tmp_path: Path) -> None:
    quantization = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemv"}
    ck = open_checkpoint(write_packed(tmp_path, gemv_tensors, quantization))
    assert ck.quantization["group_size"] == 16
    for name in ck.linears():
        expected = dense(*random_linear(*ck.weight_shape(name)[::-1], 16, 4))
        assert torch.equal(ck.tensor(f"{name}.weight"), expected)


@pytest.mark.parametrize("group_size", [8, 32, -1, 0, 7, 2**31, 2**70, True, "16"])
@pytest.mark.parametrize("layout", ["gemv", "gemm"])
def test_another_group_size_in_the_config_is_refused(group_size: Any, layout: str, tmp_path: Path) -> None:
    if layout == "gemm":
        write_awq(tmp_path)
    else:
        write_packed(tmp_path, gemv_tensors, {"quant_method": "awq", "bits": 4})
    set_quantization(tmp_path, group_size=group_size)
    with pytest.raises(InputError, match=rf"inputs in groups of {group_size}|group_size|larger than 64 bits"):
        open_checkpoint(tmp_path).weight(Q_PROJ)


def test_an_order_that_awq_cannot_have_is_refused(tmp_path: Path) -> None:
    index = torch.arange(32, dtype=torch.int32) // 16
    edit(write_awq(tmp_path), lambda tensors: tensors.update({f"{Q_PROJ}.g_idx": index}))
    expected = dense(*random_linear(32, 32, 16, 4))
    assert torch.equal(open_checkpoint(tmp_path).tensor(f"{Q_PROJ}.weight"), expected)
    edit(tmp_path, lambda tensors: tensors.update({f"{Q_PROJ}.g_idx": index.flip(0).contiguous()}))
    with pytest.raises(InputError, match=rf"'{Q_PROJ}\.g_idx' of .* has groups that are not consecutive"):
        open_checkpoint(tmp_path).weight(Q_PROJ)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("scales", lambda t: t * torch.inf, r"has 96 NaN or infinite values"),
        ("scales", lambda t: t * 0, r"has nothing but zeros"),
        ("scales", lambda t: t.int(), r"has type torch\.int32"),
        ("scales", lambda t: t[0].clone(), r"has shape \[32\]\. Expected 2 dimensions"),
        ("qzeros", lambda t: t.half(), r"has type torch\.float16 beside codes of torch\.int32"),
        ("qzeros", lambda t: t.bool(), r"has type torch\.bool"),
        ("qweight", lambda t: t[0, 0].clone(), r"has shape \[\]"),
        ("scales", lambda t: t[:-1].clone(), r"has 2 groups"),
        ("scales", lambda t: t.T.contiguous(), r"has shape"),
        ("qzeros", lambda t: t[:-1].clone(), r"has shape \[2, 4\]. Expected \[3, 4\]"),
        ("qweight", lambda t: t[:-1].clone(), r"has shape \[47, 4\]"),
        ("qweight", lambda t: t.to(torch.int16), r"has shape \[48, 4\]"),
    ],
)
def test_malformed_tensors_are_named(suffix: str, change: object, message: str, tmp_path: Path) -> None:
    write_awq(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({f"{DOWN}.{suffix}": change(tensors[f"{DOWN}.{suffix}"])}))
    blamed = "qweight" if message == "has shape" else suffix
    with pytest.raises(InputError, match=rf"'{DOWN}\.{blamed}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(DOWN)


@pytest.mark.parametrize("suffix", ["qzeros", "scales"])
def test_missing_tensors_are_named(suffix: str, tmp_path: Path) -> None:
    edit(write_awq(tmp_path), lambda tensors: tensors.pop(f"{DOWN}.{suffix}"))
    with pytest.raises(InputError, match=rf"'{DOWN}\.{suffix}' is missing from {tmp_path}"):
        open_checkpoint(tmp_path).weight(DOWN)


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="AWQ with 8 bits"):
        open_checkpoint(write_awq(tmp_path / "a", bits=8)).weight(Q_PROJ)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".qzeros")]:
            del tensors[name]

    with pytest.raises(InputError, match="Marlin layout"):
        open_checkpoint(edit(write_awq(tmp_path / "b", version="marlin"), drop))
    scaled = {"model.layers.0.mlp.act.scales": torch.ones(48)}
    with pytest.raises(InputError, match="scaled activations"):
        open_checkpoint(edit(write_awq(tmp_path / "c"), lambda tensors: tensors.update(scaled)))
