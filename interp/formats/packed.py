"""What the packed formats share: the tensors of one quantized linear, and how a format describes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.formats.shards import Header, Shards

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that a weight has where it is not quantized, and most scales."""
EXPONENTS = (torch.float8_e8m0fnu, torch.uint8)
"""Types of a scale that is a power of two: byte b stands for 2^(b - 127), 255 for NaN."""
INTEGERS = (torch.int32, torch.int64)
"""Types of a group index or a shape."""
ACTIVATION = (*FLOATS, torch.int8, torch.float8_e4m3fn)
"""Types of a scale or zero point of activations."""
MAX_GROUP_SIZE = 2**31 - 1


@dataclass(frozen=True)
class TensorRule:
    """What one tensor of a packed module must be.

    Attributes:
        dtypes: the types it may have.
        dimensions: the numbers of dimensions it may have.
        required: every packed module has it.
        of_weight: it says something of the weight, and is no setting of how an engine rounds activations.
    """

    dtypes: tuple[torch.dtype, ...]
    dimensions: tuple[int, ...] = (2,)
    required: bool = True
    of_weight: bool = True


OF_ACTIVATIONS = TensorRule(ACTIVATION, (0, 1, 2), required=False, of_weight=False)
"""A scale or zero point of what enters a linear, or comes out: of the engine, which is not measured."""


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

    def finite(self, suffix: str) -> Tensor:
        """The tensor `name.suffix`, which must be finite floating-point numbers."""
        values = self.read(suffix)
        if not values.is_floating_point():
            raise self.malformed(suffix, f"type {values.dtype}", "floating-point numbers")
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise self.malformed(suffix, f"{bad} NaN or infinite values", "finite numbers")
        return values

    def scales(self, suffix: str) -> Tensor:
        """The tensor `name.suffix`: finite floating-point numbers, not all zero; `EXPONENTS` come as float32.

        Negative scales are right: AutoRound writes them.
        """
        if self.header(suffix).dtype in EXPONENTS:
            return self._powers_of_two(suffix)
        scales = self.finite(suffix)
        if not bool(scales.any()):
            raise self.malformed(suffix, "nothing but zeros", "scales, or every weight would be 0")
        return scales

    def _powers_of_two(self, suffix: str) -> Tensor:
        powers = self.read(suffix).view(torch.float8_e8m0fnu).float()
        bad = int(powers.isnan().sum())
        if bad:
            raise self.malformed(suffix, f"the byte 255, which is NaN, in {bad} places", "powers of two")
        return powers

    def numbers(self, suffix: str, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The dense weight, which must be finite; what is not is told as a fault of `name.suffix`."""
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            raise self.malformed(suffix, f"{bad} weights that are NaN or infinite", "finite weights")
        return weight

    def number(self, *keys: str, default: int) -> int:
        """The whole number that the quantization config gives under the first of these keys it has.

        Raises:
            InputError: what is there is no whole number from -1 to `MAX_GROUP_SIZE`.
        """
        key = next((key for key in keys if self.settings.get(key) is not None), None)
        if key is None:
            return default
        value = self.settings[key]
        if type(value) is not int or not -1 <= value <= MAX_GROUP_SIZE:  # a bool is an int in Python
            raise self.unusable(key, "a whole number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """The truth value that the quantization config gives under this key.

        Raises:
            InputError: what is there is neither true nor false.
        """
        value = self.settings.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.unusable(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """The text that the quantization config gives under this key.

        Raises:
            InputError: what is there is no text.
        """
        value = self.settings.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.unusable(key, "a text")
        return value

    def header(self, suffix: str) -> Header:
        """What the file's header says of `name.suffix`.

        Raises:
            InputError: it is missing.
        """
        self.require(suffix)
        return self.shards.headers[f"{self.name}.{suffix}"]

    def header_shape(self, suffix: str) -> tuple[int, ...]:
        """Shape of `name.suffix`, without reading it.

        Raises:
            InputError: it is missing.
        """
        return self.header(suffix).shape

    def expect_shape(self, suffix: str, expected: tuple[int, ...]) -> None:
        """Raise an InputError unless `name.suffix` has this shape."""
        shape = self.header_shape(suffix)
        if shape != expected:
            raise self.malformed(
                suffix, f"shape {list(shape)}", f"{list(expected)} for a weight of [out, in] = {list(self.shape)}"
            )

    def expect_one(self, suffix: str) -> None:
        """Raise an InputError unless `name.suffix` is one number."""
        if torch.Size(self.header_shape(suffix)).numel() != 1:
            raise self.malformed(suffix, f"shape {list(self.header_shape(suffix))}", "one number")

    def expect_part(self, suffix: str, part: TensorRule) -> None:
        """Raise an InputError unless `name.suffix` has one of the types and numbers of dimensions of `part`."""
        header = self.header(suffix)
        if header.dtype not in part.dtypes:
            raise self.malformed(suffix, f"type {header.dtype}", " or ".join(map(str, part.dtypes)))
        if len(header.shape) not in part.dimensions or 0 in header.shape:
            raise self.malformed(
                suffix,
                f"shape {list(header.shape)}",
                f"{' or '.join(map(str, part.dimensions))} dimensions, none of them empty",
            )

    def malformed(self, suffix: str, found: str, expected: str) -> InputError:
        """An error about one tensor of this module."""
        tensor = f"{self.name}.{suffix}"
        where = self.shards.headers[tensor].file if tensor in self.shards else self.shards.directory
        return InputError(
            f"The tensor {tensor!r} of {where} has {found}", expected, "Write or download the checkpoint again"
        )

    def unusable(self, key: str, expected: str) -> InputError:
        """An error about one key of the quantization config."""
        return InputError(
            f"The quantization config of {self.shards.directory} gives {key} as {self.settings.get(key)!r}",
            expected,
            "Restore the config that the quantizer wrote",
        )


@dataclass(frozen=True)
class PackedFormat:
    """One way of storing quantized linears in safetensors files.

    Attributes:
        name: as in `Checkpoint.format`.
        marker: suffix of the tensor whose presence says that a module is packed.
        parts: by suffix, every tensor that belongs to a packed module.
        dequantize: the dense weight [out, in] in the writer's own arithmetic and dtype.
        describe: what is known of the quantization from one module (bits, group_size, …); its "warnings" are shown.
        verify: holds the shapes of a module against each other and the config, without reading data.
    """

    name: str
    marker: str
    parts: Mapping[str, TensorRule]
    dequantize: Callable[[PackedModule], Float[Tensor, "out in"]]
    describe: Callable[[PackedModule], Quantization]
    verify: Callable[[PackedModule], object] | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of all tensors that belong to a packed module."""
        return tuple(self.parts)

    def stored_bytes(self, module: PackedModule) -> int:
        """Bytes on disk of everything that makes the module's weight."""
        suffixes = (suffix for suffix, part in self.parts.items() if part.of_weight and suffix in module)
        return sum(module.header(suffix).n_bytes for suffix in suffixes)

    def check(self, module: PackedModule) -> None:
        """Hold types and dimensions of the tensors that are there against `parts`, before anything is computed.

        Raises:
            InputError: one that does not fit.
        """
        for suffix, part in self.parts.items():
            if suffix in module:
                module.expect_part(suffix, part)

    def fits(self, module: PackedModule) -> bool:
        """Whether the module has the marker in one of the marker's types, which tells layouts of one method apart."""
        return self.marker in module and module.header(self.marker).dtype in self.parts[self.marker].dtypes

    def require_all(self, module: PackedModule) -> None:
        """Raise an InputError unless the module has every tensor that it must have."""
        for suffix, part in self.parts.items():
            if part.required:
                module.require(suffix)


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint was quantized, as far as its files say."""

    facts: dict[str, Any]
    warnings: list[str]


def layout_of(layouts: Sequence[PackedFormat], module: PackedModule) -> PackedFormat:
    """The layout that a packed module is stored in.

    Args:
        layouts: of its checkpoint; the module has the marker of at least one.
        module: the linear.
    """
    marker = next(layout.marker for layout in layouts if layout.marker in module)
    marked = [layout for layout in layouts if layout.marker == marker]
    return next((layout for layout in marked if layout.fits(module)), marked[0])


def activation_warning(directory: Path) -> str:
    """What is said of a checkpoint whose engine rounds activations, too."""
    return (
        f"The engine that serves {directory} also rounds activations: that rounding is in no result here, where its "
        "weights alone are measured"
    )
