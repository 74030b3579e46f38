"""Writes model.safetensors beside this file: linears that MLX quantized, with its own dequantized weights.

Run where mlx 0.32.4 is installed with its CPU backend (it is no dependency of the project):

    python tests/quantizer_files/mlx/write.py
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

TYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


def main() -> None:
    """Write the file."""
    mx.random.seed(0)
    tensors = {}
    for bits in (2, 3, 4, 5, 6, 8):
        for name, dtype in TYPES.items():
            weight = (0.05 * mx.random.normal((8, 96))).astype(dtype)
            packed, scales, biases = mx.quantize(weight, group_size=32, bits=bits)
            expected = mx.dequantize(packed, scales, biases, group_size=32, bits=bits)
            parts = {"weight": packed, "scales": scales, "biases": biases, "expected": expected}
            tensors |= {f"{name}_{bits}.{part}": tensor for part, tensor in parts.items()}
    mx.save_safetensors(str(Path(__file__).with_name("model.safetensors")), tensors, {"format": "mlx"})


if __name__ == "__main__":
    main()
