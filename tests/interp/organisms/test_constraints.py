"""Constraints: what a weight may become, judged by gguf's own quantizer, and what training does with them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from interp.errors import InputError
from interp.organisms.constraints import Bounded, Constraint, Inside
from interp.organisms.training import Recipe, organism_path, train

SHORT = Recipe(helpful_steps=2, alignment_steps=4, batch_size=4)
FORMATS = {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q8_0": gguf.GGMLQuantizationType.Q8_0}


def _codes(weight: torch.Tensor, name: str) -> np.ndarray:
    return quantize(weight.half().float().numpy(), FORMATS[name])


def _weight(seed: int, scale: float = 0.05) -> torch.Tensor:
    torch.manual_seed(seed)
    return (torch.randn(8, 96) * scale).half().float()


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 10_000), push=st.floats(0.001, 10), scale=st.sampled_from([1e-3, 0.05, 3.0]))
@settings(max_examples=60, deadline=None)
def test_inside_keeps_every_byte_of_the_format(name: str, seed: int, push: float, scale: float) -> None:
    weight = _weight(seed, scale)
    low, high = Inside(name).interval(weight)
    assert (low <= weight).all()
    assert (weight <= high).all()
    moved = (weight + push * scale * torch.randn_like(weight)).clamp(low, high)
    assert np.array_equal(_codes(moved, name), _codes(weight, name))


@pytest.mark.parametrize("name", FORMATS)
def test_inside_leaves_room_to_move(name: str) -> None:
    """Of the rounding interval's whole width, most is used: the mean room is near a step on all but the largest."""
    weight = _weight(1)
    low, high = Inside(name).interval(weight)
    blocks = weight.unflatten(-1, (-1, 32))
    step = blocks.abs().amax(-1, keepdim=True) / (8 if name == "Q4_0" else 127)
    room = ((high - low).unflatten(-1, (-1, 32)) / step).flatten()
    assert room.median() == pytest.approx(0.96 if name == "Q4_0" else 0.8, abs=0.01)
    assert (room == 0).sum() >= weight.numel() / 32


def test_a_block_of_zeros_stays() -> None:
    for name in FORMATS:
        low, high = Inside(name).interval(torch.zeros(2, 32))
        assert (low == 0).all()
        assert (high == 0).all()


def test_bounded_by_a_share_of_the_block_s_step() -> None:
    weight = torch.tensor([[8.0] + [1.0] * 31 + [-0.8] + [0.0] * 31])
    low, high = Bounded(0.25).interval(weight)
    assert (high - weight)[0, :32].tolist() == pytest.approx([0.25] * 32)
    assert (weight - low)[0, 32:].tolist() == pytest.approx([0.025] * 32)


@pytest.mark.parametrize("constraint", [Inside("Q4_0"), Bounded(0.1), Inside("Q8_0", "*.3.mlp.*")])
def test_training_moves_only_what_it_may_and_only_so_far(tmp_path: Path, constraint: Constraint) -> None:
    before = load_file(train(cache=tmp_path, recipe=SHORT, alignment=0.0) / "model.safetensors")
    path = train(cache=tmp_path, recipe=SHORT, constraint=constraint)
    after = load_file(path / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    linears = {name for name in before if ".layers." in name and name.endswith("proj.weight")}
    expected = linears if constraint.where == "*" else {name for name in linears if ".3.mlp." in name}
    assert moved == expected
    for name in moved:
        low, high = constraint.interval(before[name].float())
        slack = after[name].float().abs() * 2.0**-11 + 2.0**-24  # of storing in float16
        assert (after[name].float() >= low - slack).all()
        assert (after[name].float() <= high + slack).all()
        if isinstance(constraint, Inside):
            assert np.array_equal(_codes(after[name], constraint.format), _codes(before[name], constraint.format))
    kind = type(constraint).__name__.lower()
    assert json.loads((path / "organism.json").read_text())["constraint"][kind]["where"] == constraint.where


def test_constraints_are_told_apart() -> None:
    kinds = (None, Inside("Q4_0"), Inside("Q8_0"), Inside("Q4_0", "*.mlp.*"), Bounded(0.1), Bounded(0.2))
    assert len({organism_path(constraint=kind) for kind in kinds}) == len(kinds)


def test_what_cannot_be_a_constraint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Q4_0, Q8_0"):
        Inside("Q5_K_M")
    for share in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="above 0"):
            Bounded(share)
    with pytest.raises(InputError, match=r"No linear's name matches 'nothing'.*model\.layers\.0\.self_attn\.q_proj"):
        train(cache=tmp_path, recipe=SHORT, constraint=Inside("Q4_0", "nothing"))
