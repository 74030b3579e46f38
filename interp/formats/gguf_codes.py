"""The integer codes that GGUF's plain block types give weights, worked out by the `gguf` package's own quantizer."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as BlockType
from jaxtyping import Float, UInt8
from torch import Tensor

UNIT_SCALES = {
    BlockType.Q4_0: (1,),
    BlockType.Q4_1: (1, 0),
    BlockType.Q5_0: (1,),
    BlockType.Q5_1: (1, 0),
    BlockType.Q8_0: (1,),
}
"""Block type → the float16 numbers at the head of a block (step, and offset where there is one) with which it stands
for its codes alone. The other types search for their scales, and the package does not write them."""

RETURNING = 0.999
"""Share of weights that a rule gives back which gave them: a block whose extreme is rounded in float16 may not."""


def block_codes(weight: Float[Tensor, "out in"], kind: BlockType) -> Float[Tensor, "out in"] | None:
    """The whole number of steps that a block type gives each weight; None for a type that is not in `UNIT_SCALES`.

    Args:
        weight: in Hugging Face's layout; blocks lie along its columns, so that permuted rows change nothing.
        kind: of the tensor.
    """
    if kind not in UNIT_SCALES:
        return None
    heads = np.array(UNIT_SCALES[kind], np.float16).view(np.uint8)
    stored = _quantized(weight, kind)
    blocks = stored.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1]).copy()
    blocks[:, : len(heads)] = heads
    return torch.from_numpy(gguf.dequantize(blocks.reshape(stored.shape), kind))


def by_the_rule(weight: Float[Tensor, "out in"], kind: BlockType) -> bool:
    """Whether a weight that was read from blocks of a type in `UNIT_SCALES` was put there by the type's plain rule.

    llama.cpp searches for other scales where it is given an importance matrix; then the weight does not tell its codes.
    """
    same = gguf.dequantize(_quantized(weight, kind), kind) == weight.float().cpu().numpy()
    return bool(same.mean() > RETURNING)


def _quantized(weight: Float[Tensor, "out in"], kind: BlockType) -> UInt8[np.ndarray, "out bytes"]:
    return gguf.quantize(np.ascontiguousarray(weight.float().cpu().numpy()), kind)
