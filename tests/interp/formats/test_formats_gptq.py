from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.formats.gptq import dequantize_gptq
from interp.formats.packing import packed_length, unpack_columns, unpack_rows
from tests.packed_files import (
    dense,
    edit,
    gptq_tensors,
    pack_columns,
    pack_rows,
    random_linear,
    set_quantization,
    write_gptq,
)

BITS = st.sampled_from([2, 3, 4, 8])
Q_PROJ = "model.layers.0.self_attn.q_proj"


@given(bits=st.integers(1, 8), count=st.integers(1, 100), lanes=st.integers(1, 4), seed=st.integers(0, 9))
def test_unpacking_undoes_packing(bits: int, count: int, lanes: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (count, lanes))
    words = pack_rows(codes, bits)
    assert len(words) == packed_length(count, bits)
    assert np.array_equal(unpack_rows(words, bits, count).numpy(), codes)
    assert np.array_equal(unpack_columns(pack_columns(codes.T, bits), bits, count).numpy(), codes.T)


@given(
    bits=BITS,
    version=st.sampled_from([1, 2]),
    n_in=st.integers(1, 100),
    n_out=st.integers(1, 40),
    group_size=st.integers(1, 100),
    act_order=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_width_version_and_order(
    bits: int, version: int, n_in: int, n_out: int, group_size: int, act_order: bool, seed: int
) -> None:
    codes, zeros, scales, g_idx = random_linear(n_in, n_out, group_size, bits, seed)
    if act_order:
        g_idx = np.random.default_rng(seed).permutation(g_idx)
    packed = gptq_tensors(codes, zeros, scales, g_idx, bits, version)
    weight = dequantize_gptq(**packed, bits=bits, version=version)
    assert weight.dtype is torch.float16
    assert torch.equal(weight, dense(codes, zeros, scales, g_idx))


@given(
    bits=st.integers(2, 8),
    n_in=st.integers(1, 4),
    n_out=st.integers(1, 2),
    group_size=st.integers(1, 100),
    act_order=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_width_in_planes(bits: int, n_in: int, n_out: int, group_size: int, act_order: bool, seed: int) -> None:
    codes, zeros, scales, g_idx = random_linear(32 * n_in, 32 * n_out, group_size, bits, seed)
    if act_order:
        g_idx = np.random.default_rng(seed).permutation(g_idx)
    packed = gptq_tensors(codes, zeros, scales, g_idx, bits, 2, planar=True)
    weight = dequantize_gptq(**packed, bits=bits, version=2, planar=True)
    assert torch.equal(weight, dense(codes, zeros, scales, g_idx))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("desc_act", [False, True])
def test_layers_that_gptqmodel_packs_and_dequantizes_itself(bits: int, desc_act: bool, planar: bool) -> None:
    pytest.importorskip("gptqmodel")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    n_in, n_out, group_size = 128, 64, 32
    torch.manual_seed(bits)
    g_idx = torch.arange(n_in, dtype=torch.int32) // group_size
    if desc_act:
        g_idx = g_idx[torch.randperm(n_in)]
    linear = torch.nn.Linear(n_in, n_out, bias=True).half()
    scales = (torch.rand(n_out, n_in // group_size) * 0.02 + 0.001).half().float()
    zeros = torch.randint(0, 1 << bits, (n_out, n_in // group_size)).float()
    theirs = TorchLinear(
        bits=bits,
        group_size=group_size,
        sym=False,
        desc_act=desc_act,
        in_features=n_in,
        out_features=n_out,
        bias=True,
        pack_dtype=torch.int32,
        register_buffers=True,
        format="gptq_p" if planar else "gptq_v2",
    )
    theirs.pack_original(linear, scales, zeros, g_idx)
    theirs.post_init()
    ours = dequantize_gptq(theirs.qweight, theirs.qzeros, theirs.scales, theirs.g_idx, bits, 2, planar)
    assert torch.equal(ours, theirs.dequantize_weight().T.half())


AUTOGPTQ = ["b2_noact_sym", "b3_noact_sym", "b4_act_asym", "b4_noact_sym", "b8_noact_asym"]


@pytest.mark.parametrize("name", [*(f"{name}_g64" for name in AUTOGPTQ), "b4_noact_asym_g-1"])
def test_layers_that_autogptq_wrote(fixtures: Path, name: str) -> None:
    file = fixtures / "autogptq" / f"gptq_{name}.safetensors"
    with safe_open(file, "pt") as stored:
        tensors = {suffix: stored.get_tensor(suffix) for suffix in ("qweight", "qzeros", "scales", "g_idx")}
        reference, bias = stored.get_tensor("reference_weight"), stored.get_tensor("bias")[:, None]
        bits = int(stored.metadata()["bits"])
    weight = dequantize_gptq(**tensors, bits=bits, version=1)
    # The reference is the layer's own forward pass of the identity, less its bias: two more roundings to float16.
    assert torch.equal((weight + bias) - bias, reference)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group_size", [16, -1])
def test_checkpoints(bits: int, version: int, group_size: int, tmp_path: Path) -> None:
    ck = open_checkpoint(write_gptq(tmp_path, group_size, bits, version))
    assert ck.format == "gptq"
    assert ck.quantization == {
        "bits": bits,
        "group_size": group_size,
        "symmetric": False,
        "act_order": False,
        "version": version,
        "writer": None,
    }
    assert ck.warnings == []
    for name in ck.linears():
        n_out, n_in = ck.weight_shape(name)
        expected = dense(*random_linear(n_in, n_out, n_in if group_size == -1 else group_size, bits))
        assert torch.equal(ck.tensor(f"{name}.weight"), expected)
        assert torch.equal(ck.weight(name), expected.float())
        assert ck.is_quantized(name)
    assert ck.tensor("model.norm.weight").dtype is ck.compute_dtype is torch.float16


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_checkpoints_in_planes(bits: int, tmp_path: Path) -> None:
    ck = open_checkpoint(write_gptq(tmp_path, bits=bits, version=2, planar=True))
    assert (ck.quantization["bits"], ck.quantization["version"]) == (bits, "planar" if bits in (3, 5, 6, 7) else 2)
    expected = dense(*random_linear(32, 32, 16, bits))
    assert torch.equal(ck.tensor(f"{Q_PROJ}.weight"), expected)
    if bits in (5, 6, 7):  # whatever the label says, as in GPTQModel
        for label in ("gptq", "gptq_v2", None):
            again = open_checkpoint(set_quantization(tmp_path, checkpoint_format=label))
            assert torch.equal(again.tensor(f"{Q_PROJ}.weight"), expected)


def test_group_index_of_zeros_means_absent(tmp_path: Path) -> None:
    def blank(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith(".g_idx"):
                tensors[name].zero_()

    whole, blanked = (
        open_checkpoint(write_gptq(tmp_path / "a")),
        open_checkpoint(edit(write_gptq(tmp_path / "b"), blank)),
    )
    assert torch.equal(whole.weight(Q_PROJ), blanked.weight(Q_PROJ))

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".g_idx")]:
            del tensors[name]

    assert torch.equal(whole.weight(Q_PROJ), open_checkpoint(edit(tmp_path / "b", drop)).weight(Q_PROJ))


def every_index(tensors: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Replace each `g_idx` by what `change` makes of it; None takes it out."""
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed


@pytest.mark.parametrize("change", [lambda _: None, torch.zeros_like])
@pytest.mark.parametrize("more", [{}, {"static_groups": False}, {"meta": {"static_groups": False}}])
def test_an_order_of_activations_without_its_index_is_refused(change: Any, more: Any, tmp_path: Path) -> None:
    write_gptq(tmp_path, desc_act=True, **more)
    edit(tmp_path, lambda tensors: every_index(tensors, change))
    with pytest.raises(InputError, match=rf"order of activations \(desc_act\), and the tensor '{Q_PROJ}\.g_idx' is"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("more", [{"static_groups": True}, {"meta": {"static_groups": True}}])
def test_static_groups_are_consecutive_whatever_the_order(more: Any, tmp_path: Path) -> None:
    whole = open_checkpoint(write_gptq(tmp_path / "a", desc_act=True)).weight(Q_PROJ)  # the index itself says so
    without = edit(write_gptq(tmp_path / "b", desc_act=True, **more), lambda t: every_index(t, lambda _: None))
    assert torch.equal(open_checkpoint(without).weight(Q_PROJ), whole)


def test_one_group_needs_no_order(tmp_path: Path) -> None:
    write_gptq(tmp_path, group_size=-1, desc_act=True)
    whole = open_checkpoint(tmp_path).weight(Q_PROJ)
    edit(tmp_path, lambda tensors: every_index(tensors, lambda _: None))
    assert torch.equal(open_checkpoint(tmp_path).weight(Q_PROJ), whole)


def test_a_last_group_of_fewer_inputs_in_any_order(tmp_path: Path) -> None:
    """48 inputs in groups of 32: 32 and 16."""
    order = np.random.default_rng(0).permutation(np.arange(48) // 32)
    shuffled = torch.from_numpy(order.astype(np.int32))
    write_gptq(tmp_path, group_size=32, desc_act=True)
    edit(tmp_path, lambda tensors: every_index(tensors, lambda index: shuffled.clone() if len(index) == 48 else index))
    codes, zeros, scales, _ = random_linear(48, 32, 32, 4)
    ck = open_checkpoint(tmp_path)
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(ck.tensor(f"{name}.weight"), dense(codes, zeros, scales, order))


@pytest.mark.parametrize(
    ("group_size", "change", "message"),
    [
        (16, lambda t: torch.where(torch.arange(32) < 20, 0, 1), r"has 20 inputs in group 0\. Expected 16"),
        (16, lambda t: torch.ones_like(t), r"has 0 inputs in group 0\. Expected 16"),
        (None, lambda t: torch.where(torch.arange(32) < 12, 0, 1), r"has 12 inputs in group 0\. Expected 20"),
        (-1, lambda t: t, r"scales' of .* has 2 groups\. Expected 1 groups of 32 for 32 inputs"),
        (0, lambda t: t, "gives group_size as 0"),
        (True, lambda t: t, "gives group_size as True"),
        (16.5, lambda t: t, "gives group_size as 16.5"),
        (10**30, lambda t: t, "gives group_size as 1000|integer of 31 digits"),
        (16, lambda t: t.to(torch.uint8), r"has type torch\.uint8\. Expected torch\.int32 or torch\.int64"),
        (16, lambda t: t.float(), r"has type torch\.float32"),
        (16, lambda t: t[:, None], r"has shape \[32, 1\]\. Expected 1 dimensions"),
    ],
)
def test_groups_that_cannot_be(group_size: Any, change: Any, message: str, tmp_path: Path) -> None:
    index = f"{Q_PROJ}.g_idx"
    edit(write_gptq(tmp_path), lambda tensors: tensors.update({index: change(tensors[index]).clone()}))
    set_quantization(tmp_path, group_size=group_size)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).weight(Q_PROJ)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("true_version", "label"), [(1, "gptq_v2"), (2, "gptq"), (1, "gptq"), (2, "gptq_v2")])
def test_symmetric_zero_points_overrule_a_lying_label(bits: int, true_version: int, label: str, tmp_path: Path) -> None:
    write_gptq(tmp_path, bits=bits, version=true_version, sym=True, checkpoint_format=label)
    middle = 1 << (bits - 1)

    def symmetric(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith(".qzeros"):
                scales = tensors[name.replace("qzeros", "scales")]
                stored = np.full(tuple(scales.shape), middle - (true_version == 1))
                tensors[name] = pack_columns(stored, bits)

    ck = open_checkpoint(edit(tmp_path, symmetric))
    lies = {"gptq": 1, "gptq_v2": 2}[label] != true_version
    assert [f"version {true_version} was used" in warning for warning in ck.warnings] == [True] * lies
    codes, zeros, scales, g_idx = random_linear(*ck.weight_shape(Q_PROJ)[::-1], 16, bits)
    assert torch.equal(ck.tensor(f"{Q_PROJ}.weight"), dense(codes, np.full_like(zeros, middle), scales, g_idx))


def test_bias_of_zeros_is_ignored_and_another_is_an_error(tmp_path: Path) -> None:
    write_gptq(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({f"{Q_PROJ}.bias": torch.zeros(32, dtype=torch.float16)}))
    assert open_checkpoint(tmp_path).warnings == []
    edit(tmp_path, lambda tensors: tensors[f"{Q_PROJ}.bias"].add_(1))
    with pytest.raises(InputError, match=rf"'{Q_PROJ}\.bias' of .*model\.safetensors is a bias"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("g_idx", lambda t: t + 1, r"has groups 1 to 2\. Expected groups 0 to 1"),
        ("g_idx", lambda t: t - 1, r"has groups -1 to 0"),
        ("g_idx", lambda t: t[:-1].clone(), r"has shape \[31\]"),
        ("scales", lambda t: t * torch.nan, r"has 64 NaN or infinite values"),
        ("scales", lambda t: t / 0, r"has 64 NaN or infinite values"),
        ("scales", lambda t: t[:, :-1].clone(), r"has shape \[2, 31\]"),
        ("scales", lambda t: t.int(), r"has type torch\.int32"),
        ("scales", lambda t: t * 0, r"has nothing but zeros"),
        ("scales", lambda t: t[0, 0].clone(), r"has shape \[\]\. Expected 2 dimensions"),
        ("scales", lambda t: t[:0].clone(), r"has shape \[0, 32\]\. Expected 2 dimensions, none of them empty"),
        ("qzeros", lambda t: t.float(), r"has type torch\.float32\. Expected torch\.int32"),
        ("qzeros", lambda t: t[0].clone(), r"has shape \[4\]\. Expected 2 dimensions"),
        ("qweight", lambda t: t.long(), r"has type torch\.int64\. Expected torch\.int32"),
        ("qweight", lambda t: t.bool(), r"has type torch\.bool\. Expected torch\.int32"),
        ("qzeros", lambda t: t[:, :-1].clone(), r"has shape \[2, 3\]"),
        ("qweight", lambda t: t[:-1].clone(), r"has shape \[3, 32\]. Expected \[4, 32\]"),
        ("qweight", lambda t: t[:, :-1].clone(), r"has shape \[4, 31\]"),
    ],
)
def test_malformed_tensors_are_named(suffix: str, change: object, message: str, tmp_path: Path) -> None:
    write_gptq(tmp_path)
    edit(tmp_path, lambda tensors: tensors.update({f"{Q_PROJ}.{suffix}": change(tensors[f"{Q_PROJ}.{suffix}"])}))
    with pytest.raises(InputError, match=rf"'{Q_PROJ}\.{suffix}' of .*model\.safetensors {message}"):
        open_checkpoint(tmp_path).weight(Q_PROJ)


@pytest.mark.parametrize("suffix", ["qzeros", "scales"])
def test_missing_tensors_are_named(suffix: str, tmp_path: Path) -> None:
    name = "model.layers.2.mlp.down_proj"
    edit(write_gptq(tmp_path), lambda tensors: tensors.pop(f"{name}.{suffix}"))
    with pytest.raises(InputError, match=rf"'{name}\.{suffix}' is missing from {tmp_path}"):
        open_checkpoint(tmp_path)


def test_a_packed_vector_and_a_damaged_packed_copy_are_refused(tmp_path: Path) -> None:
    def pack_norm(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.norm.qweight"] = torch.ones(4, 1, dtype=torch.int32)

    with pytest.raises(InputError, match=r"'model\.norm' in .* are packed like a matrix\. Expected a vector of \[32\]"):
        open_checkpoint(edit(write_gptq(tmp_path / "a"), pack_norm))

    def pack_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop("lm_head.weight", None)
        tensors["lm_head.qweight"] = torch.ones(4, dtype=torch.int32)

    tied = edit(write_gptq(tmp_path / "b"), pack_head)
    config = json.loads((tied / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tied / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"'lm_head\.qweight' of .* has shape \[4\]"):
        open_checkpoint(tied)


def test_unknown_widths_and_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GPTQ with 9 bits"):
        open_checkpoint(write_gptq(tmp_path, bits=9))
    with pytest.raises(InputError, match="5 bits in planes"):  # a down projection of 48 inputs
        open_checkpoint(write_gptq(tmp_path, bits=5))
    with pytest.raises(InputError, match="layout 'marlin'"):
        open_checkpoint(write_gptq(tmp_path, checkpoint_format="marlin"))
    with pytest.raises(InputError, match="layout 'gptq' and 'gptq_v2'"):
        open_checkpoint(write_gptq(tmp_path, format="gptq_v2"))
    with pytest.raises(InputError, match="gives checkpoint_format as 2"):
        open_checkpoint(write_gptq(tmp_path, checkpoint_format=2))


def test_the_version_under_its_other_key_and_under_none(tmp_path: Path) -> None:
    write_gptq(tmp_path, version=2)
    right = open_checkpoint(tmp_path).weight(Q_PROJ)
    assert open_checkpoint(set_quantization(tmp_path, checkpoint_format=None)).quantization["version"] == 1
    set_quantization(tmp_path, format="gptq_v2")
    assert torch.equal(open_checkpoint(tmp_path).weight(Q_PROJ), right)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no quantization config, and its zero points are not"):
        open_checkpoint(tmp_path)
