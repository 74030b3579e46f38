"""Codes packed into words and bytes: the arithmetic that several formats share."""

from __future__ import annotations

from math import ceil, gcd

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

WORD_BITS = 32
BYTE_BITS = 8
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Bits of a code → the widths of its planes, the lowest bits first (GPTQModel's `gptq_p`)."""
_LANES = {4: torch.int16, 2: torch.int32, 1: torch.int64}


def packed_length(count: int, bits: int) -> int:
    """How many 32-bit words hold `count` codes of `bits` bits each, packed without gaps."""
    return ceil(count * bits / WORD_BITS)


def unpack_rows(words: Int32[Tensor, "words columns"], bits: int, count: int) -> UInt8[Tensor, "{count} columns"]:
    """Read each column as one little-endian stream of `bits`-bit codes, least significant first.

    Code i occupies bits i*bits to (i+1)*bits - 1 of the stream, so 3-bit codes 10 and 21 straddle two words.
    """
    words_per_period = bits // gcd(bits, WORD_BITS)
    codes_per_period = WORD_BITS // gcd(bits, WORD_BITS)
    missing = -words.shape[0] % words_per_period
    if missing:
        words = torch.cat([words, words.new_zeros(missing, words.shape[1])])
    periods = words.reshape(-1, words_per_period, words.shape[1])
    codes = torch.empty(periods.shape[0], codes_per_period, words.shape[1], dtype=torch.uint8, device=words.device)
    for index in range(codes_per_period):
        codes[:, index] = _code(periods, index * bits, bits)
    return codes.reshape(-1, words.shape[1])[:count]


def unpack_columns(words: Int32[Tensor, "rows words"], bits: int, count: int) -> UInt8[Tensor, "rows {count}"]:
    """Read each row as one little-endian stream of codes; see `unpack_rows`."""
    return unpack_rows(words.T, bits, count).T


def bytes_of(words: Int32[Tensor, "rows words"]) -> UInt8[Tensor, "rows bytes"]:
    """The bytes of words, row by row."""
    return words.contiguous().flatten().view(torch.uint8).view(words.shape[0], -1)


def spread(packed: UInt8[Tensor, "rows bytes"], bits: int) -> UInt8[Tensor, "rows codes"]:
    """The codes that lie in bytes, least significant first, as one byte each.

    Args:
        packed: the bytes; their rows are contiguous.
        bits: of a code: 1, 2, 4 or 8.
    """
    if bits == BYTE_BITS:
        return packed
    lanes = packed.to(_LANES[bits])  # as wide as all codes of a byte, with a byte for each
    half = BYTE_BITS // 2
    upper = lanes >> half
    lanes.add_(upper, alpha=(1 << half // bits * BYTE_BITS) - (1 << half))  # moved to where its own bytes begin
    while half > bits:  # and so on with the upper half of each half
        half //= 2
        apart = half // bits * BYTE_BITS
        kept = sum(((1 << half) - 1) << place for place in range(0, BYTE_BITS * lanes.itemsize, apart))
        lanes = (lanes << (apart - half)).bitwise_or_(lanes).bitwise_and_(kept)
    return lanes.view(torch.uint8)


def nibbles_of_three(words: Int32[Tensor, "words columns"]) -> Int32[Tensor, "nibble_words columns"]:
    """A stream of 3-bit codes, as `unpack_rows` reads it, as one of four bits each: eight codes in every word."""
    missing = -words.shape[0] % 3
    if missing:
        words = torch.cat([words, words.new_zeros(missing, words.shape[1])])
    low, middle, high = words.view(-1, 3, words.shape[1]).unbind(1)
    eights = torch.stack(  # each word of eight codes: 24 bits
        [
            low & 0xFFFFFF,
            ((low >> 24) & 0xFF) | ((middle & 0xFFFF) << 8),
            ((middle >> 16) & 0xFFFF) | ((high & 0xFF) << 16),
            (high >> 8) & 0xFFFFFF,
        ],
        dim=1,
    )
    fours = (eights & 0xFFF) | ((eights & 0xFFF000) << 4)
    pairs = (fours & 0x003F003F) | ((fours & 0x0FC00FC0) << 2)
    return ((pairs & 0x07070707) | ((pairs & 0x38383838) << 1)).view(-1, words.shape[1])


def spread_planes(words: UInt8[Tensor, "rows bytes"], bits: int) -> UInt8[Tensor, "rows codes"]:
    """The codes of GPTQModel's planar layout, as one byte each.

    Every 32 codes are `bits` words: first the words of their low bits (four of each code, two of three), then those of
    the higher ones. Within a plane, codes follow one another as `spread` reads them.
    """
    blocks = words.view(words.shape[0], -1, bits, WORD_BITS // BYTE_BITS)
    low, *higher = PLANES[bits]
    codes, offset = spread(blocks[:, :, :low].reshape(len(words), -1), low).view(torch.int64), low
    for width in higher:
        plane = spread(blocks[:, :, offset : offset + width].reshape(len(words), -1), width)
        codes |= plane.view(torch.int64) << offset  # of eight codes at once; none reaches into the next
        offset += width
    return codes.view(torch.uint8)


def look_up_pairs(
    packed: UInt8[Tensor, " bytes"], table: Float32[Tensor, 16], *, high_first: bool
) -> Float32[Tensor, " codes"]:
    """The values of codes of four bits, two in each byte.

    Args:
        packed: the bytes.
        table: the value of each code.
        high_first: whether the first of the two is in the high half.
    """
    byte = torch.arange(256, device=packed.device)
    first, second = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
    return torch.stack([table[first], table[second]], dim=1)[packed.int()].flatten()


def _code(periods: Int32[Tensor, "periods words columns"], start: int, bits: int) -> Int32[Tensor, "periods columns"]:
    word, shift = divmod(start, WORD_BITS)
    code = periods[:, word] >> shift
    if shift + bits > WORD_BITS:
        low_bits = WORD_BITS - shift
        # The shift is arithmetic: without the mask the sign bit would overwrite what the next word holds.
        code = (code & ((1 << low_bits) - 1)) | (periods[:, word + 1] << low_bits)
    return code & ((1 << bits) - 1)
