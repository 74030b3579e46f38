"""Writes model.safetensors beside this file: linears that AutoRound packed, with what its own layers multiply with.

Run where auto-round 0.16.1 and torch 2.13.0 are installed (it is no dependency of the project):

    python tests/quantizer_files/auto_round/write.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from auto_round.export.export_to_autoround.export import dynamic_import_quant_linear_for_packing
from auto_round.export.export_to_awq.utils import dequantize_gemm
from safetensors.torch import save_file

INPUTS, OUTPUTS, GROUP = 64, 32, 32
CASES = [
    ("auto_round:auto_gptq", 4, True),
    ("auto_round:auto_gptq", 2, True),
    ("auto_round", 2, False),
    ("auto_round", 3, False),
    ("auto_round", 4, False),
    ("auto_round", 8, False),
    ("auto_round:gptqmodel", 4, False),
    ("auto_round:auto_awq", 4, True),
    ("auto_round:auto_awq", 4, False),
]
"""packing_format, bits, symmetric."""


def grid(bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [out, groups]."""
    scales = torch.empty(OUTPUTS, INPUTS // GROUP).uniform_(0.001, 0.1).half()
    middle = 1 << (bits - 1)
    zeros = torch.randint(1, 1 << bits, scales.shape)
    return scales, torch.full_like(zeros, middle) if symmetric else zeros


def packed(packing: str, bits: int, symmetric: bool) -> dict[str, torch.Tensor]:
    """The tensors of one linear, and its dense weight as the layer itself computes it."""
    scales, zeros = grid(bits, symmetric)
    codes = torch.randint(0, 1 << bits, (OUTPUTS, INPUTS))
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    each = [tensor.repeat_interleave(GROUP, 1).float() for tensor in (scales, zeros)]
    linear.weight.data = (codes - each[1]) * each[0]
    kind = dynamic_import_quant_linear_for_packing(packing, bits, GROUP, symmetric)
    if "awq" in packing:
        layer = kind.from_linear(
            linear,
            w_bit=bits,
            group_size=GROUP,
            init_only=False,
            scales=scales.T.contiguous(),
            zeros=zeros.T.contiguous(),
        )
        expected = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, bits, GROUP).T
    else:
        layer = kind(bits, GROUP, INPUTS, OUTPUTS, False)
        layer.device = "cpu"
        layer.pack(linear, scales.float(), zeros, None, device="cpu")
        expected = layer(torch.eye(INPUTS, dtype=torch.float16)).T
    return {**{name: t for name, t in layer.state_dict().items() if t is not None}, "expected": expected}


def main() -> None:
    """Write the file; its metadata say how each linear was packed."""
    torch.manual_seed(0)
    tensors, cases = {}, {}
    for packing, bits, symmetric in CASES:
        name = f"{packing.replace(':', '_')}_{bits}_{'sym' if symmetric else 'asym'}"
        cases[name] = {"packing_format": packing, "bits": bits, "sym": symmetric, "group_size": GROUP}
        linear = packed(packing, bits, symmetric)
        tensors |= {f"{name}.{part}": tensor.contiguous().clone() for part, tensor in linear.items()}
    save_file(tensors, Path(__file__).with_name("model.safetensors"), {"cases": json.dumps(cases)})


if __name__ == "__main__":
    main()
