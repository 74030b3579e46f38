"""Rescalings that a plain correlation misses: one large factor everywhere, outliers, channels rounded to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.checkpoint import open_checkpoint
from interp.pairs.scales import Scales, effective_weight, recovered_scales
from interp.pairs.weight_error import check_pair
from tests.interp.pairs.test_weights import round_to_nearest, wide_checkpoint

NEURONS = 96
BLOCKS = ("model.layers.0", "model.layers.1")


def factors(kind: str) -> torch.Tensor:
    """Of the 96 neurons between up and down."""
    s = torch.full((NEURONS,), 27.0)
    noise = torch.randn(NEURONS, generator=torch.Generator().manual_seed(3))
    outliers = torch.arange(NEURONS) % 24 == 5
    return {
        "everywhere the same": s,
        "outliers that round to nothing": torch.where(outliers, 1 / 27.0, s),
        "outliers beside noise": torch.where(outliers, 1 / 27.0, s * (0.1 * noise).exp()),
        "outliers that drown the others": torch.where(outliers, 300.0, s * (0.03 * noise).exp()),
        "noise": s * (0.3 * noise).exp(),
    }[kind]


def folded(tmp_path: Path, s: torch.Tensor, bits: int, norm: float = 1.0) -> tuple[Path, Path]:
    """A baseline and its cell with s between up and down, and a constant between the norm and what reads it."""
    baseline = wide_checkpoint(tmp_path / "base")
    cell = wide_checkpoint(tmp_path / "cell")
    tensors = load_file(cell / "model.safetensors")
    for block in BLOCKS:
        up, gate, down = (f"{block}.mlp.{name}_proj.weight" for name in ("up", "gate", "down"))
        weight = f"{block}.post_attention_layernorm.weight"
        tensors[weight] = (tensors[weight].float() / norm).half()
        tensors[up] = round_to_nearest(tensors[up].float() * norm / s[:, None], bits)
        tensors[gate] = round_to_nearest(tensors[gate].float() * norm, bits)
        tensors[down] = round_to_nearest(tensors[down].float() * s, bits)
    save_file(tensors, cell / "model.safetensors", {"format": "pt"})
    return baseline, cell


def error(baseline: Path, cell: Path, module: str, scales: Scales) -> float:
    ours, theirs = open_checkpoint(baseline), open_checkpoint(cell)
    weight = ours.weight(module).double()
    return float((effective_weight(theirs, module, scales, torch.float64) - weight).norm() / weight.norm())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(
    "kind",
    [
        "everywhere the same",
        "outliers that round to nothing",
        "outliers beside noise",
        "outliers that drown the others",
        "noise",
    ],
)
def test_undoing_gives_the_error_that_the_true_factors_give(kind: str, bits: int, tmp_path: Path) -> None:
    s = factors(kind)
    baseline, cell = folded(tmp_path, s, bits)
    scales = recovered_scales(open_checkpoint(baseline), open_checkpoint(cell))
    assert scales.warnings == []
    for block in BLOCKS:
        up, down = f"{block}.mlp.up_proj", f"{block}.mlp.down_proj"
        true = Scales(inputs={down: s}, outputs={up: s})
        for module in (up, down):
            undone = error(baseline, cell, module, scales)
            assert undone <= 1.1 * error(baseline, cell, module, true) + 1e-3, module
            assert undone < 0.5 * error(baseline, cell, module, Scales()), module


@pytest.mark.parametrize("norm", [27.0, 1 / 27.0, 1.3])
def test_a_constant_factor_of_a_norm_is_followed_by_all_that_read_it(norm: float, tmp_path: Path) -> None:
    """It changes no row's direction, so that the rows' own factors would hide it."""
    baseline, cell = folded(tmp_path, factors("noise"), 8, norm)
    scales = recovered_scales(open_checkpoint(baseline), open_checkpoint(cell))
    assert scales.warnings == []
    for block in BLOCKS:
        for module in (f"{block}.mlp.{name}_proj" for name in ("up", "gate", "down")):
            assert error(baseline, cell, module, scales) < 0.02, module


def test_a_norm_that_was_trained_is_no_rescaling(tmp_path: Path) -> None:
    """A constant that no linear undoes."""
    baseline, cell = wide_checkpoint(tmp_path / "base"), wide_checkpoint(tmp_path / "cell")
    tensors = load_file(cell / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"] *= 1.25
    save_file(tensors, cell / "model.safetensors", {"format": "pt"})
    found = recovered_scales(open_checkpoint(baseline), open_checkpoint(cell))
    assert (found.norms, found.inputs) == ({}, {})
    with pytest.raises(ValueError, match=r"1 of \d+ tensors differ beyond rounding, among them .*input_layernorm"):
        check_pair(baseline, cell)


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_clipping_shrank_are_no_rescaling(seed: int, tmp_path: Path) -> None:
    """Both sides by 13 %, as AutoAWQ's clipping does to the values: opposite of what a rescaling does."""
    torch.manual_seed(seed)
    baseline, cell = wide_checkpoint(tmp_path / "base"), wide_checkpoint(tmp_path / "cell")
    tensors = load_file(cell / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = round_to_nearest(tensors[name].float() * 0.87 * (1 + 0.02 * torch.randn(1)), 4)
    save_file(tensors, cell / "model.safetensors", {"format": "pt"})
    found = recovered_scales(open_checkpoint(baseline), open_checkpoint(cell))
    assert (found.inputs, found.outputs, found.warnings) == ({}, {}, [])
