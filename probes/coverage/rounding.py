"""Plain rounding to the nearest level, which knows no calibration: the control of writers that do."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from interp.checkpoint import Checkpoint
from probes.fragility.rounding import nearest, on_grid

BITS, GROUP = 4, 32
"""The bits and the group size of the control of a cell that was made in memory."""


def rounded(weight: Float[Tensor, "out in"], bits: int, group: int) -> Float[Tensor, "out in"]:
    """Every weight at the nearest of the 2^bits levels from the least to the largest of its group.

    Args:
        weight: of a linear.
        bits: per weight.
        group: weights of a row that share their levels; whole rows where it does not divide them.
    """
    width = weight.shape[1]
    return on_grid(weight, bits, group if 0 < group <= width and width % group == 0 else width, nearest)


def grid_of(cell: Checkpoint | None, linear: str) -> tuple[int, int]:
    """The whole bits per weight of a linear's codes, and its group size."""
    if cell is None:
        return BITS, GROUP
    bits = cell.quantization.get("bits") or int(cell.linear_bits(linear))
    return int(bits), int(cell.quantization.get("group_size") or GROUP)
