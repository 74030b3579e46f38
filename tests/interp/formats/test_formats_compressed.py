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
from interp.formats.packing import unpack_rows
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


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_channels_without_a_group_size(bits: int, symmetric: bool, tmp_path: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    settings = settings_for(bits, symmetric)
    group = settings["config_groups"]["group_0"]  # type: ignore[index]
    group["weights"] |= {"strategy": "channel", "group_size": None}
    write_packed(tmp_path, lambda n_in, n_out: compressed_tensors(n_in, n_out, n_in, bits, symmetric), settings)
    scheme = QuantizationScheme.model_validate(group)
    ck = open_checkpoint(tmp_path)
    for name in ck.linears():
        n_out, n_in = ck.weight_shape(name)
        tensors = compressed_tensors(n_in, n_out, n_in, bits, symmetric)
        theirs = BaseCompressor.get_value_from_registry("pack-quantized").decompress(tensors, scheme)["weight"]
        assert torch.equal(ck.tensor(f"{name}.weight"), theirs)


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


def every_zero_point(tensors: dict[str, torch.Tensor], bits: int, change: object = lambda zeros: zeros) -> None:
    """One int8 for each output and group, as compressed-tensors stored them before it packed them."""
    for name in [name for name in tensors if name.endswith(".weight_zero_point")]:
        n_out, groups = tensors[name.replace("zero_point", "scale")].shape
        zeros = unpack_rows(tensors[name], bits, n_out).to(torch.int16) - (1 << (bits - 1))
        assert tuple(zeros.shape) == (n_out, groups)
        tensors[name] = change(zeros.to(torch.int8))  # type: ignore[operator]


@pytest.mark.parametrize("bits", [4, 8])
def test_older_zero_points_of_one_byte_each(bits: int, tmp_path: Path) -> None:
    def pack(n_in: int, n_out: int) -> dict[str, torch.Tensor]:
        return compressed_tensors(n_in, n_out, 16, bits)

    write_packed(tmp_path, pack, settings_for(bits))
    edit(tmp_path, lambda tensors: every_zero_point(tensors, bits))
    ck = open_checkpoint(tmp_path)
    assert ck.quantization["symmetric"] is False
    for name in ck.linears():
        assert torch.equal(ck.tensor(f"{name}.weight"), dense(*random_linear(*ck.weight_shape(name)[::-1], 16, bits)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda zeros: zeros + 8, r"has values from 0 to 15\. Expected -8 to 7"),
        (lambda zeros: zeros[:-1].clone(), r"has shape \[31, 3\]\. Expected \[32, 3\] for int8"),
        (lambda zeros: zeros.T.contiguous(), r"has shape \[3, 32\]\. Expected \[32, 3\] for int8"),
        (lambda zeros: zeros.to(torch.int16), r"has type torch\.int16"),
    ],
)
def test_zero_points_of_one_byte_that_cannot_be(change: object, message: str, tmp_path: Path) -> None:
    write_packed(tmp_path, compressed_tensors, settings_for())
    edit(tmp_path, lambda tensors: every_zero_point(tensors, 4, change))
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).weight(NAME)


@pytest.mark.parametrize("actorder", ["group", "dynamic", True])
def test_an_order_of_activations_without_its_index_is_refused(actorder: object, tmp_path: Path) -> None:
    settings = settings_for()
    settings["config_groups"]["group_0"]["weights"]["actorder"] = actorder  # type: ignore[index]
    write_packed(tmp_path, compressed_tensors, settings)
    with pytest.raises(InputError, match=r"\(actorder\), and the tensor '.*weight_g_idx' is missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("actorder", ["weight", "static", False, None])
def test_other_orders_need_no_index(actorder: object, tmp_path: Path) -> None:
    settings = settings_for()
    settings["config_groups"]["group_0"]["weights"]["actorder"] = actorder  # type: ignore[index]
    ck = open_checkpoint(write_packed(tmp_path, compressed_tensors, settings))
    codes, zeros, scales, g_idx = random_linear(48, 32, 16, 4)
    assert torch.equal(ck.weight(NAME, torch.float16), dense(codes, zeros, scales, g_idx))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("group_size", 32, r"weight_scale' of .* has 2 groups\. Expected groups as in the config \(4 bits in 1\)"),
        ("num_bits", 8, r"weight_packed' of .* and the 8 bits of the config"),
        ("num_bits", 10**9, r"num_bits is 1000000000"),
        ("num_bits", "4", r"num_bits is '4'"),
        ("num_bits", None, r"num_bits is None"),
        ("group_size", 2.5, r"group_size is 2\.5"),
        ("type", "float", r"type is 'float'"),
        ("symmetric", "no", r"symmetric is 'no'"),
    ],
)
def test_schemes_that_the_tensors_contradict(key: str, value: object, message: str, tmp_path: Path) -> None:
    settings = settings_for()
    settings["config_groups"]["group_0"]["weights"][key] = value  # type: ignore[index]
    with pytest.raises(InputError, match=message):
        open_checkpoint(write_packed(tmp_path, compressed_tensors, settings))


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("weight_scale", lambda t: t * torch.nan, "has 96 NaN or infinite values"),
        ("weight_scale", lambda t: t[:-1].clone(), r"has shape \[31, 3\]"),
        ("weight_scale", lambda t: t[:, :0].clone(), r"has shape \[32, 0\]"),
        ("weight_scale", lambda t: t.int(), r"has type torch\.int32"),
        ("weight_packed", lambda t: t.long(), r"has type torch\.int64"),
        ("weight_packed", lambda t: t[0].clone(), r"has shape \[6\]\. Expected 2 dimensions"),
        ("weight_shape", lambda t: t.float(), r"has type torch\.float32"),
        ("weight_shape", lambda t: t.prod(), r"has shape \[\]"),
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
