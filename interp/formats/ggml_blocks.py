"""Blocks of a GGUF file → dense numbers: the usual types in cache-sized pieces, the others by the `gguf` package.

Layouts: ggml/src/ggml-common.h; arithmetic: `dequantize_row_*` of ggml/src/ggml-quants.c, product before sum in
float32, so every number is bit for bit llama.cpp's. The `gguf` package's NumPy computes the same in twice the time.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as BlockType
from jaxtyping import Float, Float32, UInt8
from numpy.typing import NDArray
from torch import Tensor

from interp.formats.packing import spread
from interp.formats.placing import placed

PIECE = 2**18
"""Numbers that are worked out at once: a megabyte of float32 stays in a core's cache from one operation to the next."""
PLAIN = {BlockType.F32: torch.float32, BlockType.F16: torch.float16, BlockType.BF16: torch.bfloat16}
Blocks = UInt8[Tensor, "blocks bytes"]
Numbers = Float32[Tensor, "blocks numbers"]
Fill = Callable[[Blocks, Numbers], object]
"""Writes the numbers of blocks into the second argument."""


def dequantize(stored: NDArray[np.uint8], kind: BlockType) -> Float[Tensor, " numbers"]:
    """The numbers of a tensor: in their own type where it is float32, float16 or bfloat16, else in float32.

    Args:
        stored: its bytes, in one dimension.
        kind: the type of its blocks.

    Raises:
        NotImplementedError: the `gguf` package does not dequantize this type.
    """
    if kind in PLAIN:
        return placed(torch.from_numpy(stored.copy())).view(PLAIN[kind])
    length, size = gguf.GGML_QUANT_SIZES[kind]
    fill = FILLS.get(kind, _by_package(kind))
    blocks = placed(torch.from_numpy(stored)).view(-1, size)
    numbers = torch.empty(len(blocks), length, device=blocks.device)
    step = PIECE // length if blocks.device.type == "cpu" else max(1, len(blocks))
    for start in range(0, len(blocks), step):
        fill(blocks[start : start + step], numbers[start : start + step])
    return numbers.view(-1)


def _by_package(kind: BlockType) -> Fill:
    def fill(blocks: Blocks, numbers: Numbers) -> None:
        numbers.copy_(torch.from_numpy(gguf.dequantize(blocks.cpu().numpy(), kind)))

    return fill


def _half(two_bytes: UInt8[Tensor, "blocks 2"]) -> Float32[Tensor, "blocks 1"]:
    return two_bytes.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _bits(codes: UInt8[Tensor, "blocks bytes"], bits: int, width: int) -> UInt8[Tensor, "blocks numbers"]:
    """The lowest bits of `width` bytes, then the next ones, until they are used up, and so on; four bytes at a time."""
    words = codes.clone(memory_format=torch.contiguous_format).view(torch.int32).unflatten(1, (-1, width // 4))
    mask = (2**bits - 1) * 0x01010101
    return torch.stack([(words >> shift) & mask for shift in range(0, 8, bits)], 2).flatten(1).view(torch.uint8)


def _fifth_bits(codes: UInt8[Tensor, "blocks 4"]) -> UInt8[Tensor, "blocks 32"]:
    """Bit i of 32, as 16."""
    bits = spread(codes.contiguous(), 1)
    return (bits.view(torch.int64) << 4).view(torch.uint8)  # of eight codes at once


def _scaled(numbers: Numbers, codes: UInt8[Tensor, "blocks numbers"], offset: int, scale: Tensor) -> None:
    """scale · (code − offset), of each group of numbers by its own scale [blocks, groups]."""
    numbers.copy_(codes)
    if offset:
        numbers.sub_(offset)
    numbers.unflatten(1, (scale.shape[1], -1)).mul_(scale.unsqueeze(2))


def _shifted(numbers: Numbers, codes: UInt8[Tensor, "blocks numbers"], scale: Tensor, minimum: Tensor) -> None:
    """scale · code − minimum, of each group by its own [blocks, groups]."""
    numbers.copy_(codes)
    numbers.unflatten(1, (scale.shape[1], -1)).mul_(scale.unsqueeze(2)).sub_(minimum.unsqueeze(2))


def _q4_0(blocks: Blocks, numbers: Numbers) -> None:
    _scaled(numbers, _bits(blocks[:, 2:], 4, 16), 8, _half(blocks[:, :2]))


def _q4_1(blocks: Blocks, numbers: Numbers) -> None:
    _shifted(numbers, _bits(blocks[:, 4:], 4, 16), _half(blocks[:, :2]), -_half(blocks[:, 2:4]))


def _q5_0(blocks: Blocks, numbers: Numbers) -> None:
    codes = _bits(blocks[:, 6:], 4, 16) | _fifth_bits(blocks[:, 2:6])
    _scaled(numbers, codes, 16, _half(blocks[:, :2]))


def _q5_1(blocks: Blocks, numbers: Numbers) -> None:
    codes = _bits(blocks[:, 8:], 4, 16) | _fifth_bits(blocks[:, 4:8])
    _shifted(numbers, codes, _half(blocks[:, :2]), -_half(blocks[:, 2:4]))


def _q8_0(blocks: Blocks, numbers: Numbers) -> None:
    numbers.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks[:, :2]))


def _q2_k(blocks: Blocks, numbers: Numbers) -> None:
    scales = blocks[:, :16]
    codes = _bits(blocks[:, 16:80], 2, 32)
    _shifted(numbers, codes, _half(blocks[:, 80:82]) * (scales & 15), _half(blocks[:, 82:84]) * (scales >> 4))


def _q3_k(blocks: Blocks, numbers: Numbers) -> None:
    """Two low bits, and a third that is set where 4 is not subtracted; six-bit scales, whose high bits lie apart."""
    codes = _bits(blocks[:, 32:96], 2, 32) | (_bits(blocks[:, :32], 1, 32) << 2)
    scales = _bits(blocks[:, 96:104], 4, 8) | (_bits(blocks[:, 104:108], 2, 4) << 4)
    _scaled(numbers, codes, 4, _half(blocks[:, 108:]) * (scales.float() - 32))


def _six_bit(packed: UInt8[Tensor, "blocks 12"]) -> tuple[UInt8[Tensor, "blocks 8"], UInt8[Tensor, "blocks 8"]]:
    """Eight scales and eight minima of six bits: of the last four of each, the high bits lie above the first four's."""
    scales, minima, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        torch.cat((scales & 63, (low & 15) | ((scales >> 2) & 48)), 1),
        torch.cat((minima & 63, (low >> 4) | ((minima >> 2) & 48)), 1),
    )


def _q4_k(blocks: Blocks, numbers: Numbers) -> None:
    scales, minima = _six_bit(blocks[:, 4:16])
    codes = _bits(blocks[:, 16:], 4, 32)
    _shifted(numbers, codes, _half(blocks[:, :2]) * scales, _half(blocks[:, 2:4]) * minima)


def _q5_k(blocks: Blocks, numbers: Numbers) -> None:
    scales, minima = _six_bit(blocks[:, 4:16])
    codes = _bits(blocks[:, 48:], 4, 32) | (_bits(blocks[:, 16:48], 1, 32) << 4)
    _shifted(numbers, codes, _half(blocks[:, :2]) * scales, _half(blocks[:, 2:4]) * minima)


def _q6_k(blocks: Blocks, numbers: Numbers) -> None:
    codes = _bits(blocks[:, :128], 4, 64) | (_bits(blocks[:, 128:192], 2, 32) << 4)
    scales = blocks[:, 192:208].view(torch.int8)
    _scaled(numbers, codes, 32, _half(blocks[:, 208:]) * scales)


FILLS: dict[BlockType, Fill] = {
    BlockType.Q4_0: _q4_0,
    BlockType.Q4_1: _q4_1,
    BlockType.Q5_0: _q5_0,
    BlockType.Q5_1: _q5_1,
    BlockType.Q8_0: _q8_0,
    BlockType.Q2_K: _q2_k,
    BlockType.Q3_K: _q3_k,
    BlockType.Q4_K: _q4_k,
    BlockType.Q5_K: _q5_k,
    BlockType.Q6_K: _q6_k,
}
