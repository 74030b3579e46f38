from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from interp.formats.ggml_blocks import FILLS, PIECE, PLAIN, dequantize

HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}
"""Where float16 numbers stand in a block; at 0 and 2 in the others."""


def random_blocks(kind: gguf.GGMLQuantizationType, count: int) -> np.ndarray:
    """Blocks of random bytes, whose scales are numbers."""
    generator = np.random.default_rng(int(kind))
    blocks = generator.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for place in HALVES.get(kind.name, (0, 2)):
        blocks[:, place : place + 2] = generator.normal(size=(count, 1)).astype(np.float16).view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", FILLS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("pieces", [0, 2.5])
def test_every_number_is_the_gguf_packages(kind: gguf.GGMLQuantizationType, pieces: float) -> None:
    """Bit for bit, signs of zeros included, of a single block and of more than fit into a piece."""
    blocks = random_blocks(kind, 1 + int(pieces * PIECE) // gguf.GGML_QUANT_SIZES[kind][0])
    expected = gguf.dequantize(blocks, kind).ravel()
    assert np.array_equal(dequantize(blocks.ravel(), kind).numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_numbers_that_are_no_blocks_keep_their_type(kind: gguf.GGMLQuantizationType) -> None:
    numbers = torch.randn(70, generator=torch.Generator().manual_seed(0)).to(PLAIN[kind])
    assert torch.equal(dequantize(numbers.view(torch.uint8).numpy(), kind), numbers)


def test_other_types_are_left_to_the_package() -> None:
    blocks = random_blocks(gguf.GGMLQuantizationType.IQ4_NL, 9)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType.IQ4_NL).ravel()
    assert np.array_equal(dequantize(blocks.ravel(), gguf.GGMLQuantizationType.IQ4_NL).numpy(), expected)
    with pytest.raises(NotImplementedError):
        dequantize(np.zeros(8, np.uint8), gguf.GGMLQuantizationType.I32)
