"""compressed-tensors, pack-quantized: unpacked and dequantized by the `compressed-tensors` package itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from interp.errors import InputError
from interp.formats.compressed_config import (
    ACTIVATION_PARTS,
    Scheme,
    activation_warnings,
    refuse_other_layouts,
    schemes_of,
)
from interp.formats.packed import (
    FLOATS,
    INTEGERS,
    PackedFormat,
    PackedModule,
    Quantization,
    TensorRule,
)
from interp.formats.packing import packed_length


def dequantize_packed(
    packed: Int[Tensor, "out words"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int[Tensor, "zero_words groups"] | Int8[Tensor, "out groups"] | None,
    g_idx: Int[Tensor, " in"] | None,
    shape: tuple[int, int],
    bits: int,
) -> Float[Tensor, "out in"]:
    """Dense weight (q - z)·s in the dtype of the scales.

    Args:
        packed: codes packed along the input.
        scale: one per group of consecutive inputs, one per output, or one in all ([1, 1]).
        zero_point: packed along the output, or one int8 each, as older versions stored them; None for symmetric
            quantization.
        g_idx: the group of each input where they are not consecutive, else None.
        shape: [out, in].
        bits: of a code.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    codes = unpack_from_int32(packed, bits, torch.Size(shape))
    zeros = zero_point
    if zero_point is not None and zero_point.dtype != torch.int8:
        # Transposed here: the package's own transpose keeps a stride that it cannot view where there is one word.
        rows = zero_point.T.clone(memory_format=torch.contiguous_format)
        zeros = unpack_from_int32(rows, bits, torch.Size((scale.shape[1], shape[0]))).T
    arguments = QuantizationArgs(
        num_bits=bits, symmetric=zeros is None, strategy="group", group_size=shape[1] // scale.shape[1]
    )
    if g_idx is None:
        return dequantize(codes, scale, zeros, arguments)
    order = torch.argsort(g_idx.long(), stable=True)
    return dequantize(codes[:, order], scale, zeros, arguments)[:, torch.argsort(order)]


def _bits(module: PackedModule) -> int:
    """The width that the packed shape shows; for 32 inputs or more only one fits.

    Raises:
        InputError: no width fits, or none that the quantization config names.
    """
    n_out, n_in = module.shape
    shape = module.header_shape("weight_packed")
    fitting = [bits for bits in range(1, 9) if shape == (n_out, packed_length(n_in, bits))]
    declared = {scheme.num_bits for scheme in schemes_of(module, "int")}
    if declared:
        fitting = [bits for bits in fitting if bits in declared]
    if len(fitting) != 1:
        raise module.malformed(
            "weight_packed",
            f"shape {list(shape)}",
            f"[{n_out}, {n_in}·bits/32] for a weight of [out, in] = {list(module.shape)}"
            + (f" and the {' or '.join(map(str, sorted(declared)))} bits of the config" if declared else ""),
        )
    return fitting[0]


def _scheme(module: PackedModule, bits: int, groups: int) -> list[Scheme]:
    """The schemes of the quantization config that could have written this module.

    Raises:
        InputError: it has schemes, and none that could.
    """
    schemes = schemes_of(module, "int")
    fitting = [scheme for scheme in schemes if scheme.num_bits == bits and scheme.groups(module.shape[1]) == groups]
    if schemes and not fitting:
        sizes = ", ".join(f"{scheme.num_bits} bits in {scheme.groups(module.shape[1])}" for scheme in schemes)
        raise module.malformed("weight_scale", f"{groups} groups", f"groups as in the config ({sizes})")
    return fitting


def _order(module: PackedModule, groups: int, schemes: Sequence[Scheme]) -> Int[Tensor, " in"] | None:
    """`weight_g_idx`, or None where groups are consecutive (absent, or filled with -1).

    Raises:
        InputError: no order where the config says that there is one, or groups that are none.
    """
    g_idx = None
    if "weight_g_idx" in module:
        module.expect_shape("weight_g_idx", (module.shape[1],))
        g_idx = module.read("weight_g_idx").long()
    if g_idx is None or bool((g_idx == -1).all()):
        if groups > 1 and schemes and all(scheme.reordered for scheme in schemes):
            raise InputError(
                f"{module.shards.directory} is quantized in the order of activations (actorder), and the tensor "
                f"'{module.name}.weight_g_idx' is {'missing' if g_idx is None else 'nothing but -1'}",
                "the group of each input, which cannot be known without it",
                "Download the checkpoint again, or quantize the model again",
            )
        return None
    size = module.shape[1] // groups
    in_range = bool(((g_idx >= 0) & (g_idx < groups)).all())
    if not in_range or bool((torch.bincount(g_idx, minlength=groups) != size).any()):
        raise module.malformed(
            "weight_g_idx",
            f"groups {int(g_idx.min())} to {int(g_idx.max())}",
            f"{size} inputs in each of {groups} groups",
        )
    return g_idx


def _scale(module: PackedModule) -> Float[Tensor, "out groups"]:
    n_out, n_in = module.shape
    scale = module.scales("weight_scale")
    per_tensor = prod(scale.shape) == 1
    scale = scale.reshape(1, 1).expand(n_out, 1) if per_tensor else scale
    if scale.dim() != 2 or scale.shape[0] != n_out or n_in % scale.shape[1]:
        raise module.malformed(
            "weight_scale", f"shape {list(scale.shape)}", f"[{n_out}, groups] with groups dividing {n_in} inputs"
        )
    return scale


def _zero_point(module: PackedModule, bits: int, groups: int, schemes: Sequence[Scheme]) -> Tensor | None:
    """Zero points, packed or one int8 each; None for symmetric quantization.

    Raises:
        InputError: missing although no scheme of the config is symmetric, or of no such shape, or out of range.
    """
    if "weight_zero_point" not in module:
        if schemes and not any(scheme.symmetric for scheme in schemes):
            module.require("weight_zero_point")
        return None
    n_out = module.shape[0]
    if module.header("weight_zero_point").dtype != torch.int8:
        module.expect_shape("weight_zero_point", (packed_length(n_out, bits), groups))
        return module.read("weight_zero_point")
    zeros = module.read("weight_zero_point")  # compressed-tensors before 0.10 did not pack them
    if zeros.numel() == 1:
        zeros = zeros.reshape(1, 1).expand(n_out, groups)
    if tuple(zeros.shape) != (n_out, groups):
        raise module.malformed("weight_zero_point", f"shape {list(zeros.shape)}", f"{[n_out, groups]} for int8")
    limit = 1 << (bits - 1)
    if int(zeros.min()) < -limit or int(zeros.max()) >= limit:
        raise module.malformed(
            "weight_zero_point",
            f"values from {int(zeros.min())} to {int(zeros.max())}",
            f"{-limit} to {limit - 1}, as {bits} bits hold",
        )
    return zeros


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in the dtype of its scales, as llm-compressor itself dequantizes it."""
    refuse_other_layouts(module, "pack-quantized")
    if "weight_shape" in module and tuple(module.read("weight_shape").tolist()) != module.shape:
        raise module.malformed(
            "weight_shape", f"the value {module.read('weight_shape').tolist()}", f"[out, in] = {list(module.shape)}"
        )
    bits, scale = _bits(module), _scale(module)
    groups = scale.shape[1]
    schemes = _scheme(module, bits, groups)
    zero_point, order = _zero_point(module, bits, groups, schemes), _order(module, groups, schemes)
    return dequantize_packed(module.read("weight_packed"), scale, zero_point, order, module.shape, bits)


def describe(module: PackedModule) -> Quantization:
    """Bits, group size and symmetry, from the tensors."""
    refuse_other_layouts(module, "pack-quantized")
    bits, n_groups = _bits(module), _scale(module).shape[1]
    schemes = _scheme(module, bits, n_groups)
    facts = {
        "bits": bits,
        "group_size": module.shape[1] // n_groups,
        "symmetric": "weight_zero_point" not in module,
        "act_order": _order(module, n_groups, schemes) is not None,
        "version": module.settings.get("version"),
    }
    return Quantization(facts, activation_warnings(module))


COMPRESSED = PackedFormat(
    "compressed-tensors",
    "weight_packed",
    {
        "weight_packed": TensorRule((torch.int32,)),
        "weight_scale": TensorRule(FLOATS, (0, 1, 2)),
        "weight_zero_point": TensorRule((torch.int32, torch.int8), (0, 1, 2), required=False),
        "weight_shape": TensorRule(INTEGERS, (1,), required=False),
        "weight_g_idx": TensorRule(INTEGERS, (1,), required=False),
        **ACTIVATION_PARTS,
    },
    dequantize,
    describe,
)
