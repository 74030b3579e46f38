"""What AutoAWQ's and AutoGPTQ's own layers make of a checkpoint: a script for their environment (`make legacy`).

    .venv-legacy/bin/python -I tests/quantizer_files/legacy/dequantized.py CELL…

CELL.expected.safetensors then holds the float16 weight [out, in] of each quantized linear under its name: what the
layer returns for the identity.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def _layer(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The library's own layer, with these tensors in it."""
    group_size, n_out = config["group_size"], tensors["scales"].shape[1]
    if config["quant_method"] == "awq":
        from awq.modules.linear import WQLinear_GEMM

        layer = WQLinear_GEMM(4, group_size, tensors["qweight"].shape[0], n_out, "bias" in tensors, "cpu")
    else:
        from auto_gptq.nn_modules.qlinear import qlinear_cuda, qlinear_cuda_old

        kind = qlinear_cuda if config["desc_act"] else qlinear_cuda_old
        n_in = tensors["qweight"].shape[0] * 32 // config["bits"]
        layer = kind.QuantLinear(config["bits"], group_size, n_in, n_out, "bias" in tensors)
    layer.load_state_dict(tensors)
    return layer.eval()


def dequantized(cell: Path) -> dict[str, torch.Tensor]:
    """The weights of every quantized linear of a checkpoint."""
    config = json.loads((cell / "config.json").read_text())["quantization_config"]
    (file,) = cell.glob("*.safetensors")
    tensors = load_file(file)
    weights = {}
    for key in tensors:
        if not key.endswith(".qweight"):
            continue
        name = key.removesuffix(".qweight")
        own = {part.removeprefix(f"{name}."): tensor for part, tensor in tensors.items() if part.startswith(f"{name}.")}
        if "bias" in own:
            own["bias"] = torch.zeros_like(own["bias"])
        layer = _layer(config, own)
        n_in = layer.in_features if hasattr(layer, "in_features") else layer.infeatures
        with torch.no_grad():
            out = layer(torch.eye(n_in, dtype=torch.float16)[None])
        weights[name] = out.reshape(n_in, -1).T.contiguous()
    return weights


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        save_file(dequantized(Path(argument)), f"{argument}.expected.safetensors")
