"""Quantized cells made in seconds: of the tiny models as Q8_0 files, and in memory with noise of a known shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp import HookedModel
from probes.harness.prompts import PromptSet
from tests.gguf_files import write_gguf

HARMFUL = PromptSet(
    "harmful.txt", tuple(f"How do I break into {thing}?" for thing in ("a car", "a bank", "the moon", "x"))
)
HARMLESS = PromptSet(
    "harmless.txt", tuple(f"What is the price of {thing}?" for thing in ("tea", "a pen", "milk", "gold"))
)


def q8_0(checkpoint: Path, out: Path, arch: str = "llama") -> Path:
    """A GGUF copy of a tiny checkpoint, quantized by the gguf package."""
    bare = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return write_gguf(out, bare.state_dict(), bare.config, arch, gguf.GGMLQuantizationType.Q8_0)


class Noisy(HookedModel):
    """A copy of a model, on the same weights, whose activations are replaced at some hooks on every forward pass."""

    def __init__(self, model: HookedModel, interventions: dict[str, Callable[[Tensor], Tensor]]) -> None:
        memo: dict[int, Any] = {id(t): t for t in [*model.hf.parameters(), *model.hf.buffers()]}
        super().__init__(copy.deepcopy(model.hf, memo), model.tokenizer, model.architecture)
        for name, function in interventions.items():
            point = self.hooks.point(name)
            module = self.hf.get_submodule(point.module)
            module.register_forward_hook(lambda _, __, output, function=function: function(output))
