"""Writes model.safetensors beside this file: linears that ModelOpt quantized, with its own dequantized weights.

Run where nvidia-modelopt 0.47.0 and torch 2.13.0 are installed (it is no dependency of the project):

    python tests/quantizer_files/modelopt/write.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor
from safetensors.torch import save_file


def nvfp4(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The tensors of one linear as ModelOpt exports them, and its dense weight."""
    quantized, scale, scale_2 = NVFP4QTensor.quantize(0.05 * torch.randn(shape), 16)
    expected = quantized.dequantize(torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
    return {"weight": quantized._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2, "expected": expected}


def fp8(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """As `nvfp4`, for one scale and numbers of eight bits."""
    quantized, scale = FP8QTensor.quantize(0.05 * torch.randn(shape))
    expected = quantized.dequantize(torch.float32, scale=scale)
    return {"weight": quantized._quantized_data, "weight_scale": scale.reshape(()), "expected": expected}


def main() -> None:
    """Write the file."""
    torch.manual_seed(0)
    linears = {"nvfp4": nvfp4((32, 64)), "fp8": fp8((32, 48))}
    tensors = {f"{name}.{part}": t.contiguous().clone() for name, parts in linears.items() for part, t in parts.items()}
    save_file(tensors, Path(__file__).with_name("model.safetensors"), {"format": "pt"})


if __name__ == "__main__":
    main()
