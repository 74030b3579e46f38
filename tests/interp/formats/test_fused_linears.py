"""Phi-3's fused matrices, quantized: queries, keys and values in one, gates and ups in one."""

from __future__ import annotations

from pathlib import Path

import torch

from interp import load
from interp.checkpoint import open_checkpoint
from tests.packed_files import blocks, dense, e4m3, gptq_tensors, random_linear, write_float8, write_packed
from tests.tiny_models import TEXTS

SHAPES = {
    "self_attn.o_proj": (32, 32),
    "self_attn.qkv_proj": (64, 32),
    "mlp.gate_up_proj": (96, 32),
    "mlp.down_proj": (32, 48),
}
"""Four query heads and two key and value heads of width 8; 48 gates and 48 ups."""


def test_gptq(tmp_path: Path) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": False}
    write_packed(
        tmp_path,
        lambda n_in, n_out: gptq_tensors(*random_linear(n_in, n_out, 16, 4, seed=n_out), 4, 1),
        settings | {"checkpoint_format": "gptq"},
        "phi3",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.linears() == [f"model.layers.{block}.{name}" for block in range(3) for name in SHAPES]
    model = load(tmp_path)
    for name in checkpoint.linears():
        n_out, n_in = SHAPES[name.split(".", 3)[3]]
        expected = dense(*random_linear(n_in, n_out, 16, 4, seed=n_out))
        assert torch.equal(checkpoint.weight(name, torch.float16), expected)
        assert torch.equal(model.hf.get_submodule(name).weight, expected.float())
    assert model.logits(TEXTS).isfinite().all()


def test_fine_grained_fp8(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_float8(tmp_path, model="phi3"))
    assert checkpoint.format == "fp8"
    for name in checkpoint.linears():
        stored = {part: checkpoint._reader.shards.read(f"{name}.{part}") for part in ("weight", "weight_scale_inv")}
        shape = SHAPES[name.split(".", 3)[3]]
        scales = blocks(stored["weight_scale_inv"].numpy(), (16, 24), shape)
        expected = torch.from_numpy(e4m3(stored["weight"].view(torch.uint8).numpy()) * scales)
        assert torch.equal(checkpoint.weight(name), expected)
