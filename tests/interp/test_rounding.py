"""Copies and fine-tunes of tensors; numpy's own float16 and bit arithmetic are the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.rounding import is_copy, resembles

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def weights(dtype: torch.dtype = F32, n: int = 400) -> torch.Tensor:
    """Of sizes from 1 down to float16's subnormal numbers."""
    random = np.random.default_rng(0)
    return torch.from_numpy(random.normal(size=n) * 10.0 ** random.uniform(-7, 0, n)).to(dtype)


def nearest_bfloat16(tensor: torch.Tensor) -> torch.Tensor:
    """By its bits: the upper half of float32, ties to even."""
    bits = tensor.float().numpy().view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return torch.from_numpy(rounded.astype(np.uint32).view(np.float32))


@pytest.mark.parametrize("stored", [F16, BF16, F32])
@pytest.mark.parametrize("cell", [F16, BF16, F32])
def test_a_copy_in_any_dtype_is_one_also_after_a_trip(stored: torch.dtype, cell: torch.dtype) -> None:
    ours = weights(stored)
    assert is_copy(ours, ours.to(cell))
    assert is_copy(ours, nearest_bfloat16(ours).to(cell)), "through bfloat16"
    assert is_copy(ours, torch.from_numpy(ours.float().numpy().astype(np.float16)).to(cell)), "through float16"
    assert is_copy(ours.to(cell), ours), "the baseline may be the one that was rounded"


def test_two_roundings_of_an_original_that_neither_file_holds() -> None:
    original = weights()
    assert is_copy(original.to(F16), original.to(BF16))
    assert is_copy(original.to(BF16), original.to(F16))


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_one_number_moved_by_one_step_is_no_copy_within_a_dtype(dtype: torch.dtype) -> None:
    ours = weights(dtype)
    tuned = ours.clone()
    tuned[7] = torch.nextafter(ours[7], torch.tensor(2.0, dtype=dtype))
    assert tuned[7] != ours[7]
    assert not is_copy(ours, tuned)


def test_a_change_that_a_coarser_rounding_would_hide_is_seen() -> None:
    """0.3 % is less than bfloat16's step, but a float16 tensor that never was in bfloat16 shows it."""
    ours = weights(F16)
    assert not is_copy(ours, (ours.float() * 1.003).to(F16))
    assert not is_copy(ours, (ours.float() * 1.003).to(BF16).to(F16))
    assert not is_copy(ours, (ours.float() * 1.003).to(BF16))


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("summed_in", [F16, F32])
def test_a_stored_sum_is_as_exact_as_the_sum(dtype: torch.dtype, summed_in: torch.dtype) -> None:
    """llama.cpp stores w + 1: what is read is (w + 1) - 1, without the last digits of a small w."""
    ours = weights(dtype)
    read = (ours.to(summed_in) + 1).float() - 1
    assert is_copy(ours, read, offset=1.0)
    assert is_copy(read, ours, offset=1.0)
    assert not is_copy(ours, read)
    tuned = read.clone()
    tuned[3] += 1e-3
    assert not is_copy(ours, tuned, offset=1.0)


def test_an_independent_weight_resembles_nothing_whatever_its_size() -> None:
    ours = weights(n=40000)
    for size in (0.0, 1e-6, 1e-2, 1.0, 10.0):
        other = torch.randn(40000, generator=torch.Generator().manual_seed(1)) * size * ours.std()
        assert not resembles(ours, other)
    assert resembles(ours, ours * 0.6), "two bits lose as much"
