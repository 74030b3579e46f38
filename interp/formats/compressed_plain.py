"""compressed-tensors, float-quantized and int-quantized: one number of eight bits for each weight, in its own type.

Dequantized by the `compressed-tensors` package itself, in the dtype of the scales.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.formats.compressed_config import (
    ACTIVATION_PARTS,
    Scheme,
    activation_warnings,
    refuse_other_layouts,
    schemes_of,
)
from interp.formats.packed import FLOATS, PackedFormat, PackedModule, Quantization, TensorRule

KINDS: dict[torch.dtype, Literal["int", "float"]] = {torch.int8: "int", torch.float8_e4m3fn: "float"}
"""Type of the stored numbers → `type` of a scheme, and the first word of the layout's name."""
BITS = 8


def _kind(module: PackedModule) -> Literal["int", "float"]:
    """The kind of number that the weight is; the layout must be one that stores this kind."""
    kind = KINDS[module.header("weight").dtype]
    refuse_other_layouts(module, f"{kind}-quantized", "naive-quantized")
    return kind


def _grids(scheme: Scheme, shape: tuple[int, int]) -> list[tuple[int, ...]]:
    """Shapes that the scales of a weight [out, in] may have by this scheme."""
    n_out, n_in = shape
    if scheme.strategy == "block" and scheme.block_structure:
        rows, columns = scheme.block_structure
        return [(ceil(n_out / rows), ceil(n_in / columns))]
    if scheme.strategy == "tensor" or (scheme.strategy is None and scheme.group_size is None):
        return [(), (1,), (1, 1)]
    return [(n_out, scheme.groups(n_in)), *([(n_out,)] if scheme.groups(n_in) == 1 else [])]


def _scheme(module: PackedModule) -> Scheme:
    """The scheme of the quantization config that the shape of the scales shows.

    Raises:
        InputError: none does, or there is no config.
    """
    kind, shape = _kind(module), module.header_shape("weight_scale")
    schemes = [scheme for scheme in schemes_of(module, kind) if kind == "int" or scheme.num_bits == BITS]
    fitting = [scheme for scheme in schemes if shape in _grids(scheme, module.shape)]
    if not fitting:
        shapes = " or ".join(str(list(grid)) for scheme in schemes for grid in _grids(scheme, module.shape))
        raise module.malformed(
            "weight_scale",
            f"shape {list(shape)}",
            f"{shapes or 'a quantization config with its scheme'} for a weight of [out, in] = {list(module.shape)}",
        )
    return fitting[0]


def _block(module: PackedModule, scheme: Scheme) -> tuple[int, int]:
    """Rows and columns of a weight that share a scale."""
    if scheme.strategy == "block" and scheme.block_structure:
        return scheme.block_structure[0], scheme.block_structure[1]
    shape = module.header_shape("weight_scale")
    if prod(shape) == 1:
        return module.shape
    return 1, module.shape[1] // (shape[1] if len(shape) == 2 else 1)


def verify(module: PackedModule) -> None:
    """Raise an InputError unless weight, scales and zero points have shapes and types that belong together."""
    module.expect_shape("weight", module.shape)
    scheme = _scheme(module)
    _, columns = _block(module, scheme)
    if scheme.strategy != "block" and module.shape[1] % columns:
        raise module.malformed(
            "weight_scale", f"groups of {columns} inputs", f"a size that divides {module.shape[1]} inputs"
        )
    if "weight_g_idx" in module or (scheme.reordered and columns < module.shape[1]):
        raise module.malformed("weight", "inputs in the order of their activations (actorder)", "consecutive groups")
    if "weight_zero_point" in module:
        module.expect_shape("weight_zero_point", module.header_shape("weight_scale"))
        module.expect_part("weight_zero_point", TensorRule((module.header("weight").dtype,), (0, 1, 2)))
    elif not scheme.symmetric:
        module.require("weight_zero_point")


def _arguments(module: PackedModule, scheme: Scheme) -> Any:
    """The package's own description of the scheme."""
    from compressed_tensors.quantization import QuantizationArgs

    rows, columns = _block(module, scheme)
    sizes = {"block_structure": [rows, columns]} if scheme.strategy == "block" else {"group_size": columns}
    strategy = "block" if scheme.strategy == "block" else "group"
    return QuantizationArgs(
        num_bits=scheme.num_bits, type=scheme.type, symmetric=scheme.symmetric, strategy=strategy, **sizes
    )


def _codes(module: PackedModule, scheme: Scheme) -> Tensor:
    """The stored numbers, which fit into the scheme's bits."""
    codes = module.read("weight")
    limit = 1 << (scheme.num_bits - 1)
    if codes.dtype == torch.int8 and (int(codes.min()) < -limit or int(codes.max()) >= limit):
        raise module.malformed(
            "weight",
            f"values from {int(codes.min())} to {int(codes.max())}",
            f"{-limit} to {limit - 1}, as {scheme.num_bits} bits hold",
        )
    return codes


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in the dtype of its scales, as compressed-tensors itself dequantizes it."""
    from compressed_tensors.quantization.lifecycle.forward import dequantize as by_package

    verify(module)
    scheme = _scheme(module)
    zeros = _per_weight_row(module, scheme, module.read("weight_zero_point")) if "weight_zero_point" in module else None
    scale = _per_weight_row(module, scheme, module.scales("weight_scale"))
    return module.numbers("weight", by_package(_codes(module, scheme), scale, zeros, _arguments(module, scheme)))


def _per_weight_row(module: PackedModule, scheme: Scheme, part: Tensor) -> Tensor:
    """Scales or zero points as [out, groups], but for blocks, whose rows stand for several."""
    if scheme.strategy == "block":
        return part
    rows = part.reshape(1 if part.numel() == 1 else module.shape[0], -1)
    return rows.expand(module.shape[0], rows.shape[1])


def describe(module: PackedModule) -> Quantization:
    """Bits, strategy and group size, from the config's scheme that the tensors show."""
    scheme = _scheme(module)
    facts = {
        "bits": scheme.num_bits,
        "layout": f"{_kind(module)}-quantized",
        "strategy": scheme.strategy,
        "group_size": min(_block(module, scheme)[1], module.shape[1]),
        "symmetric": "weight_zero_point" not in module,
        "act_order": False,
        "version": module.settings.get("version"),
    }
    return Quantization(facts, activation_warnings(module))


COMPRESSED_PLAIN = PackedFormat(
    "compressed-tensors",
    "weight_scale",
    {
        "weight": TensorRule((torch.int8, torch.float8_e4m3fn)),
        "weight_scale": TensorRule(FLOATS, (0, 1, 2)),
        "weight_zero_point": TensorRule((torch.int8, torch.float8_e4m3fn), (0, 1, 2), required=False),
        **ACTIVATION_PARTS,
    },
    dequantize,
    describe,
    verify,
)
