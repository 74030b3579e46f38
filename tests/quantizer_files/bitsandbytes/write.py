"""Writes model.safetensors beside this file: linears that bitsandbytes quantized, with its own dequantized weights.

Run where bitsandbytes 0.50.2 and torch 2.13.0 are installed (it is no dependency of the project):

    python tests/quantizer_files/bitsandbytes/write.py
"""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import save_file

CASES = {
    "nf4": ("nf4", torch.float16, 64, False, (16, 64), torch.uint8),
    "fp4": ("fp4", torch.bfloat16, 64, False, (16, 64), torch.uint8),
    "nf4_nested": ("nf4", torch.bfloat16, 32, True, (96, 96), torch.uint8),
    "fp4_nested": ("fp4", torch.float16, 64, True, (16, 64), torch.uint8),
    "nf4_across_rows": ("nf4", torch.float32, 64, False, (9, 24), torch.uint8),
    "fp4_odd": ("fp4", torch.float32, 32, False, (5, 7), torch.uint8),
    "nf4_as_bfloat16": ("nf4", torch.bfloat16, 64, True, (16, 64), torch.bfloat16),
}
"""Name → kind, type, size of a block, whether magnitudes are quantized, [out, in], type of the storage."""


def four_bits(
    kind: str, dtype: torch.dtype, blocksize: int, nested: bool, shape: tuple[int, int], storage: torch.dtype
) -> dict[str, torch.Tensor]:
    """What `Linear4bit` saves, and the dense weight."""
    weight = (0.05 * torch.randn(shape)).to(dtype)
    packed, state = functional.quantize_4bit(
        weight, blocksize=blocksize, compress_statistics=nested, quant_type=kind, quant_storage=storage
    )
    tensors = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    absmax = state.absmax
    if nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    code = functional.get_4bit_type(kind, device="cpu")
    expected = _dequantize_4bit_compute(packed.view(torch.uint8).reshape(-1), absmax, code, blocksize, shape, dtype)
    if shape[1] % blocksize == 0:  # the kernel for AVX-512 takes each row for whole blocks
        assert torch.equal(expected, functional.dequantize_4bit(packed, state))
    return {"weight": packed, **tensors, "expected": expected}


def eight_bits(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What `Linear8bitLt` saves, and the dense weight."""
    codes, scb, _ = functional.int8_vectorwise_quant((0.05 * torch.randn(shape)).half())
    weight_format = torch.tensor(0, dtype=torch.uint8)
    expected = functional.int8_vectorwise_dequant(codes, scb)
    return {"weight": codes, "SCB": scb, "weight_format": weight_format, "expected": expected}


def main() -> None:
    """Write the file."""
    torch.manual_seed(0)
    linears = {name: four_bits(*case) for name, case in CASES.items()} | {"int8": eight_bits((16, 48))}
    tensors = {
        f"{name}.{part}": tensor.contiguous().clone()
        for name, parts in linears.items()
        for part, tensor in parts.items()
    }
    save_file(tensors, Path(__file__).with_name("model.safetensors"), {"bitsandbytes": bitsandbytes.__version__})


if __name__ == "__main__":
    main()
