"""Writes a tiny Llama with AutoAWQ and with AutoGPTQ, and what their own layers make of it, beside this file.

Run in the environment of `make legacy`:

    .venv-legacy/bin/python -I tests/quantizer_files/legacy/write.py
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
WORKER = HERE.parents[2] / "interp" / "quantize" / "legacy_worker.py"
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.08,
    "rope_theta": 700.0,
}


def main() -> None:
    """Write both cells and their dequantized weights."""
    write = runpy.run_path(str(WORKER))["write"]
    dequantized = runpy.run_path(str(HERE / "dequantized.py"))["dequantized"]
    torch.manual_seed(0)
    rows = torch.randint(0, SHAPE["vocab_size"], (16, 32)).tolist()
    with tempfile.TemporaryDirectory() as source:
        LlamaForCausalLM(LlamaConfig(**SHAPE)).half().save_pretrained(source)
        for method, name in (("awq", "autoawq"), ("gptq", "autogptq")):
            job = {"method": method, "source": source, "out": str(HERE / name), "rows": rows}
            write(job | {"bits": 4, "group_size": 32, "act_order": False}, lambda done, total: None)
            save_file(dequantized(HERE / name), HERE / f"{name}.expected.safetensors")


if __name__ == "__main__":
    main()
