"""The codes of GGUF's plain block types, against blocks whose codes are known and against the organisms' constraint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as BlockType
from gguf import dequantize, quantize

from interp.formats.gguf_codes import UNIT_SCALES, block_codes, by_the_rule
from interp.organisms import Inside

LEVELS = {
    BlockType.Q4_0: torch.arange(-8, 8),
    BlockType.Q4_1: torch.arange(16),
    BlockType.Q5_0: torch.arange(-16, 16),
    BlockType.Q5_1: torch.arange(32),
    BlockType.Q8_0: torch.arange(-127, 128, 8)[:32],
}


@pytest.mark.parametrize("kind", UNIT_SCALES)
def test_a_block_that_lies_on_its_grid_has_the_codes_it_was_made_of(kind: BlockType) -> None:
    """Steps of an eighth, and for types with an offset from −2 on; a block's extreme weight decides its step."""
    codes = LEVELS[kind].repeat(32 // len(LEVELS[kind])).expand(3, -1)
    offset = -2 if len(UNIT_SCALES[kind]) == 2 else 0
    found = block_codes(codes * 0.125 + offset, kind)
    assert found is not None
    assert torch.equal(found, codes.float())


@pytest.mark.parametrize("kind", UNIT_SCALES)
def test_what_was_rounded_keeps_its_codes(kind: BlockType) -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    rounded = torch.from_numpy(dequantize(quantize(np.ascontiguousarray(weight.numpy()), kind), kind))
    codes = block_codes(weight, kind)
    assert codes is not None
    again = block_codes(rounded, kind)
    assert again is not None
    assert (again == codes).double().mean() > 0.999


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_weights_inside_their_rounding_intervals_have_the_same_codes(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 64, generator=generator)
    low, high = Inside(name).interval(weight)
    other = low + (high - low) * torch.rand(weight.shape, generator=generator)
    codes, same = block_codes(weight, BlockType[name]), block_codes(other, BlockType[name])
    assert codes is not None
    assert same is not None
    assert not torch.equal(weight, other)
    assert torch.equal(codes, same)


def test_types_that_search_for_their_scales_have_none() -> None:
    assert block_codes(torch.ones(1, 256), BlockType.Q4_K) is None


@pytest.mark.parametrize("kind", UNIT_SCALES)
def test_a_weight_tells_its_codes_where_the_plain_rule_gave_them(kind: BlockType) -> None:
    """A search, as with an importance matrix, may leave the outer levels of a block's grid empty."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)).numpy()
    assert by_the_rule(torch.from_numpy(dequantize(quantize(weight, kind), kind)), kind)
    inner = LEVELS[kind][2:-2].float()
    generator = torch.Generator().manual_seed(0)
    searched = 0.125 * inner[torch.randint(len(inner), (16, 256), generator=generator)]
    assert not by_the_rule(searched, kind)
