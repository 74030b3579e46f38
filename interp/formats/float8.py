"""Fine-grained FP8 (`quant_method: fp8`, as of DeepSeek V3): a scale for each block of rows and columns.

Layout: transformers' `integrations/finegrained_fp8.py`. w = q·s in float32; `weight_scale_inv` is multiplied, whatever
its name says. Blocks at the edges may be smaller, so their size is the config's and never worked out from shapes.
"""

from __future__ import annotations

from math import ceil, prod

import torch
from jaxtyping import Float
from torch import Tensor

from interp.formats.packed import (
    EXPONENTS,
    FLOATS,
    OF_ACTIVATIONS,
    PackedFormat,
    PackedModule,
    Quantization,
    TensorRule,
    activation_warning,
)

BITS = 8


def dequantize_blocks(
    codes: Float[Tensor, "out in"], scales: Float[Tensor, "row_blocks column_blocks"], block: tuple[int, int]
) -> Float[Tensor, "out in"]:
    """Dense weight q·s in float32.

    Args:
        codes: numbers of eight bits.
        scales: of each block.
        block: rows and columns that share a scale; the last may be fewer.
    """
    height, width = block
    along_rows = scales.float().repeat_interleave(width, dim=1)[:, : codes.shape[1]]
    return torch.cat([rows.float() * along_rows[index] for index, rows in enumerate(codes.split(height))])


def _block(module: PackedModule) -> tuple[int, int]:
    """Rows and columns of a block, by the config; the whole weight where it says that there are none.

    Raises:
        InputError: no two positive whole numbers, or nothing at all.
    """
    size = module.settings.get("weight_block_size")
    if size is None and prod(module.header_shape("weight_scale_inv")) == 1:
        return module.shape
    if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in size):
        raise module.unusable("weight_block_size", "two positive whole numbers, the rows and columns of a block")
    return size[0], size[1]


def _grid(module: PackedModule) -> tuple[int, int]:
    """How many blocks there are along rows and columns."""
    rows, columns = (ceil(size / block) for size, block in zip(module.shape, _block(module), strict=True))
    return rows, columns


def verify(module: PackedModule) -> None:
    """Raise an InputError unless the shapes are those of a weight in the config's blocks."""
    module.expect_shape("weight", module.shape)
    shape, grid = module.header_shape("weight_scale_inv"), _grid(module)
    if shape != grid and (prod(grid) != 1 or prod(shape) != 1):
        raise module.malformed(
            "weight_scale_inv",
            f"shape {list(shape)}",
            f"{list(grid)}: {list(module.shape)} in blocks of {list(_block(module))}, as the config says",
        )


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in float32, as transformers and DeepSeek's own code dequantize it."""
    verify(module)
    scales = module.scales("weight_scale_inv").reshape(_grid(module))
    return module.numbers("weight", dequantize_blocks(module.read("weight"), scales, _block(module)))


def describe(module: PackedModule) -> Quantization:
    """Size of a block, from the config."""
    rows, columns = _block(module)
    facts = {
        "bits": BITS,
        "group_size": min(columns, module.shape[1]),
        "block_rows": min(rows, module.shape[0]),
        "symmetric": True,
        "act_order": False,
        "version": "e4m3",
    }
    return Quantization(facts, [activation_warning(module.shards.directory)])


FLOAT8 = PackedFormat(
    "fp8",
    "weight_scale_inv",
    {
        "weight": TensorRule((torch.float8_e4m3fn,)),
        "weight_scale_inv": TensorRule((*FLOATS, *EXPONENTS), (0, 1, 2)),
        "activation_scale": OF_ACTIVATIONS,
    },
    dequantize,
    describe,
    verify,
)
