"""Codes packed into words and bytes: the arithmetic that several formats share."""

from __future__ import annotations

from math import ceil, gcd

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

WORD_BITS = 32


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


def look_up_pairs(
    packed: UInt8[Tensor, " bytes"], table: Float32[Tensor, 16], *, high_first: bool
) -> Float32[Tensor, " codes"]:
    """The values of codes of four bits, two in each byte.

    Args:
        packed: the bytes.
        table: the value of each code.
        high_first: whether the first of the two is in the high half.
    """
    byte = torch.arange(256)
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
