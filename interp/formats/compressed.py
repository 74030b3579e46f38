"""compressed-tensors, pack-quantized: unpacked and dequantized by the `compressed-tensors` package itself."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.formats.packed import PackedFormat, PackedModule, Quantization
from interp.formats.packing import packed_length


def dequantize_packed(
    packed: Int[Tensor, "out words"],
    scale: Float[Tensor, "out groups"],
    zero_point: Int[Tensor, "zero_words groups"] | None,
    g_idx: Int[Tensor, " in"] | None,
    shape: tuple[int, int],
    bits: int,
) -> Float[Tensor, "out in"]:
    """Dense weight (q - z)·s in the dtype of the scales.

    Args:
        packed: codes packed along the input.
        scale: one per group of consecutive inputs, one per output, or one in all ([1, 1]).
        zero_point: packed along the output; None for symmetric quantization.
        g_idx: the group of each input where they are not consecutive, else None.
        shape: [out, in].
        bits: of a code.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    codes = unpack_from_int32(packed, bits, torch.Size(shape))
    zeros = None
    if zero_point is not None:
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
    """The width that the packed shape shows; for 32 inputs or more only one fits."""
    n_out, n_in = module.shape
    shape = module.header_shape("weight_packed")
    fitting = [bits for bits in range(1, 9) if shape == (n_out, packed_length(n_in, bits))]
    declared = [bits for bits in fitting if bits in _declared_bits(module)]
    if len(fitting) != 1 and len(declared) != 1:
        raise module.malformed(
            "weight_packed",
            f"shape {list(shape)}",
            f"[{n_out}, {n_in}·bits/32] for a weight of [out, in] = {list(module.shape)}",
        )
    return (declared or fitting)[0]


def _declared_bits(module: PackedModule) -> list[Any]:
    return [group["weights"].get("num_bits") for group in _config_groups(module) if group.get("weights")]


def _config_groups(module: PackedModule) -> list[dict[str, Any]]:
    """The schemes of the quantization config; none where it has none."""
    groups = module.settings.get("config_groups") or {}
    if isinstance(groups, dict):
        schemes = list(groups.values())
        if all(isinstance(g, dict) and isinstance(g.get("weights") or {}, dict) for g in schemes):
            return schemes
    raise InputError(
        f"The quantization config of {module.shards.directory} gives config_groups as {groups!r}",
        "an object of schemes, each with its 'weights'",
        "Restore the config that the quantizer wrote",
    )


def _refuse_other_layouts(module: PackedModule) -> None:
    settings = module.settings
    layout = settings.get("format", "pack-quantized")
    transforms = settings.get("transform_config") or {}
    sparsity = (settings.get("sparsity_config") or {}).get("format", "dense")
    for what, found, expected in (
        ("format", layout, "pack-quantized"),
        ("sparsity format", sparsity, "dense"),
        ("transforms", "some" if transforms.get("config_groups") else "none", "none"),
    ):
        if found != expected and not (what == "format" and found == "mixed-precision"):
            raise InputError(
                f"{module.shards.directory} is compressed-tensors with the {what} {found!r}",
                expected,
                "Only weights in whole-number groups (pack-quantized) are supported",
            )


def _order(module: PackedModule, groups: int) -> Int[Tensor, " in"] | None:
    """`weight_g_idx`, or None where groups are consecutive (absent, or filled with -1)."""
    if "weight_g_idx" not in module:
        return None
    module.expect_shape("weight_g_idx", (module.shape[1],))
    g_idx = module.read("weight_g_idx")
    if bool((g_idx == -1).all()):
        return None
    size = module.shape[1] // groups
    if not torch.equal(torch.bincount(g_idx.long().clamp(min=0), minlength=groups), torch.full((groups,), size)):
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


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in the dtype of its scales, as llm-compressor itself dequantizes it."""
    _refuse_other_layouts(module)
    if "weight_shape" in module and tuple(module.read("weight_shape").tolist()) != module.shape:
        raise module.malformed(
            "weight_shape", f"the value {module.read('weight_shape').tolist()}", f"[out, in] = {list(module.shape)}"
        )
    bits, scale = _bits(module), _scale(module)
    zero_point = None
    if "weight_zero_point" in module:
        module.expect_shape("weight_zero_point", (packed_length(module.shape[0], bits), scale.shape[1]))
        zero_point = module.read("weight_zero_point")
    elif not _symmetric(module):
        module.require("weight_zero_point")
    order = _order(module, scale.shape[1])
    return dequantize_packed(module.read("weight_packed"), scale, zero_point, order, module.shape, bits)


def _symmetric(module: PackedModule) -> bool:
    """Whether any group of the config could have written this module without zero points."""
    groups = [group["weights"] for group in _config_groups(module) if group.get("weights")]
    return not groups or any(weights.get("symmetric", True) for weights in groups)


def describe(module: PackedModule) -> Quantization:
    """Bits, group size and symmetry, from the tensors."""
    _refuse_other_layouts(module)
    scale = _scale(module)
    groups = _config_groups(module)
    facts = {
        "bits": _bits(module),
        "group_size": module.shape[1] // scale.shape[1],
        "symmetric": "weight_zero_point" not in module,
        "act_order": _order(module, scale.shape[1]) is not None,
        "version": module.settings.get("version"),
    }
    activations = any(group.get("input_activations") for group in groups)
    warning = (
        f"{module.shards.directory} also asks for quantized activations, which only its serving engine applies; "
        "its weights alone are measured"
    )
    return Quantization(facts, [warning] if activations else [])


COMPRESSED = PackedFormat(
    "compressed-tensors",
    "weight_packed",
    ("weight_scale",),
    ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    dequantize,
    describe,
)
