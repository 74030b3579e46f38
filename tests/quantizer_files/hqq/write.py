"""Writes model.safetensors beside this file: linears that hqq quantized, with its own dequantized weights.

Run where hqq 0.2.8.post1 is installed (it is no dependency of the project; `DISABLE_CUDA=1` builds it without a GPU):

    python tests/quantizer_files/hqq/write.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from safetensors.torch import save_file

BITS = (8, 6, 5, 4, 3, 2, 1.58, 1)
DTYPES = {0: torch.bfloat16, 1: torch.float16}
"""Axis → the type that its linears are computed in."""


def linear(bits: float, axis: int, dtype: torch.dtype, **settings: bool) -> dict[str, torch.Tensor]:
    """What a linear's state dict holds, and its dense weight."""
    layer = torch.nn.Linear(48, 16, bias=False)
    layer.weight.data = 0.05 * torch.randn(16, 48)
    config = BaseQuantizeConfig(nbits=bits, group_size=16, axis=axis, **settings)
    quantized = HQQLinear(layer, config, compute_dtype=dtype, device="cpu")
    return {**quantized.state_dict(), "expected": quantized.dequantize()}


def main() -> None:
    """Write the file."""
    torch.manual_seed(0)
    linears = {
        f"axis{axis}_{bits:g}".replace(".", "p"): linear(bits, axis, DTYPES[axis]) for axis in DTYPES for bits in BITS
    }
    linears["words_as_floats_4"] = linear(4, 1, torch.float16, view_as_float=True)
    linears["words_as_floats_3"] = linear(3, 1, torch.float32, view_as_float=True)
    linears["single_4"] = linear(4, 0, torch.float32)
    tensors = {
        f"{name}.{key}": tensor.detach().clone() for name, parts in linears.items() for key, tensor in parts.items()
    }
    save_file(tensors, Path(__file__).with_name("model.safetensors"), {"format": "pt"})


if __name__ == "__main__":
    main()
