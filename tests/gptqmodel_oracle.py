"""A writer process that also loads what it wrote with GPTQModel and keeps GPTQModel's own dequantized weights.

They go to `reference.dequantized` in the cell: [in, out] float16 under the linear's name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from interp.child import JobReport, serve
from interp.quantize import gptqmodel_worker


def write(job: dict[str, Any], report: JobReport) -> dict[str, Any]:
    said = gptqmodel_worker.write(job, report)
    reference = _dequantized(job["out"], job["method"])
    save_file(reference, f"{job['out']}/reference.dequantized")
    return said


def _dequantized(path: str, method: str) -> dict[str, torch.Tensor]:
    from gptqmodel import GPTQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    model = GPTQModel.load(path, backend=f"{method}_torch", device="cpu", dtype=torch.float16).model
    group_size = json.loads(Path(path, "quantize_config.json").read_text())["group_size"]
    dense = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseQuantLinear):
            if method == "awq":
                weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, 4, group_size)
            else:
                weight = module.dequantize_weight()
            dense[name] = weight.contiguous()
    return dense


if __name__ == "__main__":
    serve(write)
