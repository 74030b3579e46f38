"""Codes in groups of inputs, made dense: w = (q - z)·s, in blocks of rows that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

BLOCK = 2**18
"""Weights that are computed at once. Passes over a whole layer would wait for memory, not for arithmetic."""
ALIGNED = 8
"""Rows of a block are a multiple of this: as many outputs share a word in AWQ's GEMM layout."""


def scale_codes(
    codes: Callable[[slice], UInt8[Tensor, "rows in"]],
    zeros: Float[Tensor, "out groups"],
    scales: Float[Tensor, "out groups"],
    group: Int[Tensor, " in"],
) -> Float[Tensor, "out in"]:
    """Dense weight s·(q - z), with one multiplication in the dtype of the scales.

    Args:
        codes: gives the codes of a range of outputs.
        zeros: zero points, in the dtype of the scales.
        scales: one per output and group.
        group: the group of each input.
    """
    n_out, n_groups = scales.shape
    n_in, group = group.shape[0], group.to(scales.device)
    weight = torch.empty(n_out, n_in, dtype=scales.dtype, device=scales.device)
    even = consecutive(group, n_groups)
    step = max(BLOCK // n_in // ALIGNED, 1) * ALIGNED
    for start in range(0, n_out, step):
        rows = slice(start, min(start + step, n_out))
        part = weight[rows].copy_(codes(rows))  # small integers: exact, so is q - z
        if even:  # broadcasting is faster than gathering
            part.view(len(part), n_groups, -1).sub_(zeros[rows, :, None]).mul_(scales[rows, :, None])
        else:
            part.sub_(zeros[rows][:, group]).mul_(scales[rows][:, group])
    return weight


def consecutive(group: Int[Tensor, " in"], n_groups: int) -> bool:
    """Whether the groups follow one another and are all of one size."""
    size, rest = divmod(group.shape[0], n_groups)
    return rest == 0 and size > 0 and torch.equal(group, torch.arange(group.shape[0], device=group.device) // size)
