"""Whether one stored tensor is another one, rounded: what a copy may do to numbers and a fine-tune does not.

A copy keeps every number or rounds it to a dtype that the file or its writer uses, so a copy can be told exactly: some
chain of roundings turns the one tensor into the other, bit by bit. A fine-tune that moves a single number of a tensor
off that chain is seen, however small the change. Only where two files store a tensor in different dtypes is a bound
needed too: both may be roundings of an original that neither holds, and then differ by up to half a step of each. A
change of a tensor that stays below that bound in every one of its numbers cannot be told from rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

ROUNDED_TO = (torch.float32, torch.float16, torch.bfloat16)
"""What checkpoints are stored in and what writers compute in: GPTQModel takes float16 through bfloat16 on the CPU."""
FLOAT32_STEP = torch.finfo(torch.float32).eps
AT_A_TIME = 2**20
"""Numbers of a tensor that are computed in float64 at a time: a large matrix would take gigabytes."""
UNRELATED = 0.9
"""Relative error from which on a weight shares nothing with another: an independent weight's is √(1 + s²), s being its
relative size, and that of rounding to two bits is about 0.6."""


def is_copy(ours: Tensor, theirs: Tensor, offset: float = 0.0) -> bool:
    """Whether two tensors of one shape hold the same numbers, but for the rounding that copying involves.

    Args:
        ours: the one tensor, in the dtype that it is stored in.
        theirs: the other, in its own.
        offset: what a file of one of them stores added to every number (llama.cpp: 1 for Gemma's norms). The sum is
            what was rounded, so that a small number is only as exact as the sum.
    """
    if any(_equal(rounded, theirs) for rounded in _copies(ours)) or any(_equal(ours, back) for back in _copies(theirs)):
        return True
    if offset and (_is_stored_sum(ours, theirs, offset) or _is_stored_sum(theirs, ours, offset)):
        return True
    return ours.dtype != theirs.dtype and _of_one_original(ours, theirs)


def equal_up_to_rounding(
    baseline: Tensor, quantized: Tensor, stored: set[torch.dtype], roundings: int = 1, offset: float = 0.0
) -> bool:
    """Whether two tensors are as close as so many roundings to the dtypes they were stored in allow.

    Args:
        baseline: the one tensor.
        quantized: the other.
        stored: the dtypes of both files.
        roundings: how many there were, each to the coarser dtype.
        offset: what was added to the numbers when they were rounded; see `is_copy`.
    """
    limits = [torch.finfo(dtype) for dtype in stored]
    relative = roundings * max(limit.eps for limit in limits)
    absolute = roundings * max(limit.eps * limit.smallest_normal for limit in limits)  # the step of subnormal numbers
    close = torch.allclose(quantized.double() + offset, baseline.double() + offset, rtol=relative, atol=absolute)
    return bool(close)


def resembles(ours: Tensor, theirs: Tensor) -> bool:
    """Whether `theirs` can be `ours` quantized, to however few bits."""
    ours, theirs = (tensor.reshape(len(tensor), -1) for tensor in (ours, theirs))
    error = size = 0.0
    for rows in row_slices(*ours.shape):
        weight = ours[rows].double()
        error += float((theirs[rows].double() - weight).square().sum())
        size += float(weight.square().sum())
    return error < UNRELATED**2 * size


def row_slices(n_rows: int, n_columns: int) -> list[slice]:
    """Slices of rows of which none holds more numbers than are computed in float64 at a time.

    Args:
        n_rows: of a matrix.
        n_columns: of it.
    """
    step = max(1, AT_A_TIME // max(1, n_columns))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def _copies(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor as it is, rounded to each dtype, and rounded twice."""
    yield tensor
    for dtype in ROUNDED_TO:
        yield tensor.to(dtype)
    for first, second in permutations(ROUNDED_TO, 2):
        yield tensor.to(first).to(second)


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.dtype == second.dtype:
        return torch.equal(first, second)
    wide = torch.promote_types(first.dtype, second.dtype)
    wide = torch.float32 if wide in (torch.float16, torch.bfloat16) else wide
    return torch.equal(first.to(wide), second.to(wide))


def _is_stored_sum(plain: Tensor, stored: Tensor, offset: float) -> bool:
    """Whether `stored` is `plain` after its sum with the offset was rounded to some dtype, and the offset taken off."""
    wide = stored.double()
    sums = ((copy.to(dtype) + offset).double() - offset for copy in _copies(plain) for dtype in ROUNDED_TO)
    return any(torch.allclose(wide, rounded, rtol=FLOAT32_STEP, atol=FLOAT32_STEP * abs(offset)) for rounded in sums)


def _of_one_original(first: Tensor, second: Tensor) -> bool:
    """Whether both can be roundings of the same numbers: no further apart than half a step of each."""
    difference = (first.double() - second.double()).abs()
    return bool((difference <= _half_step(first) + _half_step(second)).all())


def _half_step(tensor: Tensor) -> Tensor:
    """Half the distance between neighbouring numbers of the tensor's dtype, at each of its numbers."""
    limits = torch.finfo(tensor.dtype)
    _, exponent = torch.frexp(tensor.double().abs().clamp_min(limits.smallest_normal))
    return torch.ldexp(torch.full_like(tensor, limits.eps / 4, dtype=torch.float64), exponent)  # mantissas are below 1
