"""What the packed formats share: the tensors of one quantized linear, and how a format describes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.formats.shards import Shards


@dataclass(frozen=True)
class PackedModule:
    """The packed tensors of one linear, with what is needed to say which file and tensor are at fault.

    Attributes:
        name: the module's name in the files.
        shards: where its tensors are.
        settings: the checkpoint's quantization config, `{}` where it has none.
        shape: what the model's config says the dense weight is, [out, in].
    """

    name: str
    shards: Shards
    settings: Mapping[str, Any]
    shape: tuple[int, int]

    def __contains__(self, suffix: str) -> bool:
        return f"{self.name}.{suffix}" in self.shards

    def read(self, suffix: str) -> Tensor:
        """The tensor `name.suffix`.

        Raises:
            InputError: it is missing.
        """
        self.require(suffix)
        return self.shards.read(f"{self.name}.{suffix}")

    def require(self, suffix: str) -> None:
        """Raise an InputError unless `name.suffix` is there."""
        if suffix not in self:
            raise InputError(
                f"The tensor '{self.name}.{suffix}' is missing from {self.shards.directory}",
                f"it beside the other packed tensors of {self.name}",
                "The checkpoint is incomplete: download it or write it again",
            )

    def scales(self, suffix: str) -> Tensor:
        """The tensor `name.suffix`, which must be finite floating-point numbers."""
        scales = self.read(suffix)
        if not scales.is_floating_point():
            raise self.malformed(suffix, f"type {scales.dtype}", "floating-point numbers")
        bad = int((~torch.isfinite(scales)).sum())
        if bad:
            raise self.malformed(suffix, f"{bad} NaN or infinite values", "finite scales")
        return scales

    def number(self, *keys: str, default: int) -> int:
        """The whole number that the quantization config gives under the first of these keys it has.

        Raises:
            InputError: what is there is no whole number.
        """
        key = next((key for key in keys if self.settings.get(key) is not None), None)
        if key is None:
            return default
        try:
            return int(self.settings[key])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The quantization config of {self.shards.directory} gives {key} as {self.settings[key]!r}",
                "a whole number",
                "Restore the config that the quantizer wrote",
            ) from error

    def header_shape(self, suffix: str) -> tuple[int, ...]:
        """Shape of `name.suffix`, without reading it.

        Raises:
            InputError: it is missing.
        """
        self.require(suffix)
        return self.shards.headers[f"{self.name}.{suffix}"].shape

    def expect_shape(self, suffix: str, expected: tuple[int, ...]) -> None:
        """Raise an InputError unless `name.suffix` has this shape."""
        found = self.header_shape(suffix)
        if found != expected:
            raise self.malformed(
                suffix, f"shape {list(found)}", f"{list(expected)} for a weight of [out, in] = {list(self.shape)}"
            )

    def malformed(self, suffix: str, found: str, expected: str) -> InputError:
        """An error about one tensor of this module."""
        tensor = f"{self.name}.{suffix}"
        where = self.shards.headers[tensor].file if tensor in self.shards else self.shards.directory
        return InputError(
            f"The tensor {tensor!r} of {where} has {found}", expected, "Write or download the checkpoint again"
        )


@dataclass(frozen=True)
class PackedFormat:
    """One way of storing quantized linears in safetensors files.

    Attributes:
        name: as in `Checkpoint.format`.
        marker: suffix of the tensor whose presence says that a module is packed.
        required: suffixes that every packed module must have beside the marker.
        suffixes: of all tensors that belong to a packed module's weight.
        dequantize: the dense weight [out, in] in the writer's own arithmetic and dtype.
        describe: what is known of the quantization from one module (bits, group_size, …); its "warnings" are shown.
    """

    name: str
    marker: str
    required: tuple[str, ...]
    suffixes: tuple[str, ...]
    dequantize: Callable[[PackedModule], Float[Tensor, "out in"]]
    describe: Callable[[PackedModule], Quantization]


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint was quantized, as far as its files say."""

    facts: dict[str, Any]
    warnings: list[str]
