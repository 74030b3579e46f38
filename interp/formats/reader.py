"""What every way of storing a model offers; `interp.checkpoint.Checkpoint` is written against it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.architectures import Architecture


class Reader(ABC):
    """The dense tensors of one stored model, under Hugging Face names, read one at a time.

    Attributes:
        format: "dense", "awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "modelopt", "mlx", "mxfp4", "hqq"
            or "gguf".
        architecture: the row of `interp.architectures`.
        config: the transformers config without its quantization; None for a GGUF.
        quantization: what is known of the quantization (bits, group_size, symmetric, act_order, version, writer).
        warnings: what a user should know before trusting the tensors.
        linears: linears inside the blocks, in the model's order.
        files: every file the tensors come from.
    """

    format: str
    architecture: Architecture
    config: Any
    quantization: dict[str, Any]
    warnings: list[str]
    linears: list[str]
    files: list[Path]

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every dense state-dict name (tied copies omitted) with its shape in the Hugging Face layout."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor in the Hugging Face layout, in its stored dtype (the writer's own for a dequantized one)."""

    @abstractmethod
    def is_quantized(self, module: str) -> bool:
        """Whether the module's weight is stored quantized."""

    @abstractmethod
    def stored_bytes(self, module: str) -> int:
        """Bytes on disk of the module's weight: codes, scales, zero points and order."""

    @abstractmethod
    def floating_dtypes(self) -> dict[torch.dtype, int]:
        """For each dtype of unquantized floating-point parameters, how many numbers are stored in it."""

    def codes(self, module: str, weight: Tensor) -> Tensor | None:
        """The integer code [out, in] that the module's format gives each number of a weight [out, in]; None where the
        weight alone does not determine it, as where the grid was fitted to activations."""
        return None

    def metadata(self) -> dict[str, Any]:
        """What a GGUF says of its own model, keys without the architecture's prefix; empty where a config.json does."""
        return {}

    @abstractmethod
    def vocabulary(self) -> dict[str, int] | None:
        """Token to id, None where the files carry no tokenizer that can be read without code."""
