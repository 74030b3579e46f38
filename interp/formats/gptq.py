"""GPTQ: groups of 2 to 8 bits, version 1 and 2, in one stream or in planes, with and without act-order.

Layouts: AutoGPTQ 0.7.1 and GPTQModel 7.7, `nn_modules/qlinear` and `utils/planar_packing.py`.
w = s[g_idx]·(q - z[g_idx]) in float16.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor

from interp.errors import InputError
from interp.formats.grouped import scale_codes
from interp.formats.packed import FLOATS, INTEGERS, PackedFormat, PackedModule, Quantization, TensorRule
from interp.formats.packing import (
    PLANES,
    WORD_BITS,
    bytes_of,
    nibbles_of_three,
    packed_length,
    spread,
    spread_planes,
    unpack_columns,
)

BITS = (2, 3, 4, 5, 6, 7, 8)
IN_PLANES = (5, 6, 7)
"""Bits that exist in planes only, whatever the layout is called; three bits exist both ways, of the others both are one
and the same."""
PLANAR = "gptq_p"
VERSIONS: dict[str, Literal[1, 2]] = {"gptq": 1, "gptq_v2": 2, PLANAR: 2}
"""`checkpoint_format` in the config; version 1 stores z - 1, version 2 stores z."""


def dequantize_gptq(
    qweight: Int32[Tensor, "words out"],
    qzeros: Int32[Tensor, "groups zero_words"],
    scales: Float[Tensor, "groups out"],
    g_idx: Int[Tensor, " in"],
    bits: int,
    version: Literal[1, 2],
    planar: bool = False,
) -> Float[Tensor, "out in"]:
    """Dense weight s[g_idx]·(q - z[g_idx]), with one multiplication in the dtype of the scales.

    Args:
        qweight: codes packed along the input.
        qzeros: zero points packed along the output.
        scales: one per group and output.
        g_idx: the group of each input.
        bits: of a code.
        version: 1 where the file stores z - 1, 2 where it stores z.
        planar: the codes lie in planes, which those of 5, 6 and 7 bits always do.
    """
    n_in, n_out = g_idx.shape[0], scales.shape[1]
    planes = _in_planes(bits, planar)
    zeros = _zero_points(_stored_codes(qzeros, bits, n_out, planes), bits, version)
    words = nibbles_of_three(qweight) if bits == 3 and not planes else qweight  # four bits lie within a byte
    rows = bytes_of(words.T)  # to turn the words is less work than to turn the weights
    width = 4 if bits == 3 else bits

    def codes(outputs: slice) -> UInt8[Tensor, "rows in"]:
        packed = rows[outputs]
        return (spread_planes(packed, bits) if planes else spread(packed, width))[:, :n_in]

    return scale_codes(codes, zeros.to(scales.dtype).T.contiguous(), scales.T.contiguous(), g_idx.long())


def _in_planes(bits: int, planar: bool) -> bool:
    """Whether the codes must be read plane by plane; of one plane they are a stream."""
    return bits in IN_PLANES or (planar and len(PLANES[bits]) > 1)


def _stored_codes(
    words: Int32[Tensor, "rows words"], bits: int, count: int, planes: bool
) -> UInt8[Tensor, "rows {count}"]:
    if planes:
        return spread_planes(bytes_of(words), bits)[:, :count]
    return unpack_columns(words, bits, count)


def _zero_points(stored: UInt8[Tensor, "groups out"], bits: int, version: Literal[1, 2]) -> Tensor:
    """Add version 1's missing one to each field on its own, modulo 2^bits: z = 0 is stored as all ones."""
    zeros = stored.to(torch.int16)
    return (zeros + 1) % (1 << bits) if version == 1 else zeros


def contradicted_version(stored: UInt8[Tensor, "groups out"], bits: int) -> Literal[1, 2] | None:
    """The version that symmetric zero points show: all are 2^(bits-1), less one in version 1; None if neither."""
    middle = 1 << (bits - 1)
    if bool((stored == middle - 1).all()):
        return 1
    return 2 if bool((stored == middle).all()) else None


def _bits(module: PackedModule) -> int:
    """Bits from the packed shapes where they decide (GPTQModel can mix widths), else from the config."""
    n_out, n_in = module.shape
    stored_lengths = (module.header_shape("qweight")[0], module.header_shape("qzeros")[-1])
    fitting = [bits for bits in BITS if (packed_length(n_in, bits), packed_length(n_out, bits)) == stored_lengths]
    declared = module.number("bits", default=0)
    if declared in fitting:
        return declared
    if declared not in (0, *BITS):
        raise InputError(
            f"{module.shards.directory} is GPTQ with {declared} bits",
            "2 to 8 bits",
            "Other widths are not supported",
        )
    if declared:
        fitting = fitting or [declared]  # the shape checks then say which tensor does not have the declared width
    if len(fitting) != 1:
        raise module.malformed(
            "qweight",
            f"shape {list(module.header_shape('qweight'))}",
            f"[{packed_length(n_in, declared or 4)}, {n_out}] for a {declared or 4}-bit weight of "
            f"[out, in] = {list(module.shape)}",
        )
    return fitting[0]


def _groups(module: PackedModule, n_groups: int) -> Int[Tensor, " in"]:
    """The group of each input.

    Raises:
        InputError: no order where the inputs were quantized in another than their own, or groups of unequal size.
    """
    n_in = module.shape[1]
    if "g_idx" not in module:
        return _consecutive_groups(module, n_groups)
    module.expect_shape("g_idx", (n_in,))
    g_idx = module.read("g_idx").long()
    if n_groups > 1 and not bool(g_idx.any()):  # a placeholder, not an order
        return _consecutive_groups(module, n_groups)
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= n_groups:
        raise module.malformed(
            "g_idx",
            f"groups {int(g_idx.min())} to {int(g_idx.max())}",
            f"groups 0 to {n_groups - 1}, as many as scales",
        )
    sizes = torch.bincount(g_idx, minlength=n_groups)
    size = _group_size(module, n_groups, undeclared=int(sizes.max()))
    expected = torch.bincount(torch.arange(n_in, device=g_idx.device) // size, minlength=n_groups)
    if not torch.equal(sizes, expected):
        wrong = int((sizes != expected).nonzero()[0])
        raise module.malformed(
            "g_idx",
            f"{int(sizes[wrong])} inputs in group {wrong}",
            f"{int(expected[wrong])}, as groups of {size} share {n_in} inputs",
        )
    return g_idx


def _consecutive_groups(module: PackedModule, n_groups: int) -> Int[Tensor, " in"]:
    """The group of each input where the file does not say it.

    Raises:
        InputError: the inputs were quantized in the order of their activations, which only `g_idx` holds. (With static
            groups that order decided the rounding alone, and groups are consecutive.)
    """
    if n_groups > 1 and module.flag("desc_act", default=False) and not _static_groups(module):
        raise InputError(
            f"{module.shards.directory} is GPTQ in the order of activations (desc_act), and the tensor "
            f"'{module.name}.g_idx' is {'nothing but zeros' if 'g_idx' in module else 'missing'}",
            "the group of each input, which cannot be known without it",
            "Download the checkpoint again, or quantize the model again",
        )
    n_in = module.shape[1]
    if not module.number("group_size", default=0) and n_in % n_groups:
        raise module.malformed("scales", f"{n_groups} groups", f"a number that divides {n_in} inputs, or a group_size")
    return torch.arange(n_in) // _group_size(module, n_groups, undeclared=n_in // n_groups)


def _static_groups(module: PackedModule) -> bool:
    """AutoGPTQ says it beside `desc_act`, GPTQModel in `meta`."""
    meta = module.settings.get("meta")
    return module.settings.get("static_groups") is True or (
        isinstance(meta, dict) and meta.get("static_groups") is True
    )


def _group_size(module: PackedModule, n_groups: int, undeclared: int) -> int:
    """Inputs of a group (the last may have fewer), checked against the number of groups.

    Args:
        module: the linear.
        n_groups: as many as there are rows of scales.
        undeclared: the size to take where the config gives none.

    Raises:
        InputError: a size that makes another number of groups.
    """
    n_in = module.shape[1]
    declared = module.number("group_size", default=undeclared)
    if declared == 0:
        raise module.unusable("group_size", "-1, or a positive number of inputs")
    size = n_in if declared == -1 else declared
    if ceil(n_in / size) != n_groups:
        raise module.malformed(
            "scales", f"{n_groups} groups", f"{ceil(n_in / size)} groups of {size} for {n_in} inputs"
        )
    return size


def _version(module: PackedModule, stored: UInt8[Tensor, "groups out"], bits: int) -> tuple[Literal[1, 2], str | None]:
    """The version to use, and a warning where symmetric zero points contradict the label.

    Raises:
        InputError: a layout that is neither version, or nothing at all that tells the version.
    """
    label = _label(module)
    if bits in IN_PLANES:  # GPTQModel, which alone writes them, stores z and trusts no label
        return 2, None
    labelled = VERSIONS[label]
    seen = contradicted_version(stored, bits) if module.flag("sym", default=True) else None
    if seen is None and not module.settings:
        raise InputError(
            f"{module.shards.directory} has no quantization config, and its zero points are not those of symmetric "
            "quantization, which would tell how they are stored",
            "a quantization_config in config.json, or a quantize_config.json",
            "Download the file that the quantizer wrote beside the weights",
        )
    if seen is None or seen == labelled:
        return labelled, None
    return seen, (
        f"{module.shards.directory} is labelled {label!r} (version {labelled}), but the zero points of symmetric "
        f"quantization are stored as in version {seen}; version {seen} was used"
    )


def _label(module: PackedModule) -> str:
    """The layout by the quantization config; without a word it is version 1. GPTQModel says it under two keys.

    Raises:
        InputError: a layout that is not supported, or two different ones.
    """
    labels = {module.text(key, default="").lower() for key in ("checkpoint_format", "format")} - {""}
    if not labels <= set(VERSIONS) or len(labels) > 1:
        raise InputError(
            f"{module.shards.directory} is GPTQ in the layout {' and '.join(map(repr, sorted(labels)))}",
            f"checkpoint_format {' or '.join(VERSIONS)}",
            "Convert it to plain GPTQ with the tool that wrote it",
        )
    return labels.pop() if labels else "gptq"


def _stored_zeros(module: PackedModule, bits: int) -> tuple[Int32[Tensor, "groups words"], UInt8[Tensor, "groups out"]]:
    n_out = module.shape[0]
    scales = module.scales("scales")
    if scales.shape[1] != n_out:
        raise module.malformed("scales", f"shape {list(scales.shape)}", f"[groups, {n_out}]")
    module.expect_shape("qzeros", (scales.shape[0], packed_length(n_out, bits)))
    qzeros = module.read("qzeros")
    return qzeros, _stored_codes(qzeros, bits, n_out, _planar(module, bits))


def _planar(module: PackedModule, bits: int) -> bool:
    """Whether the codes lie in planes, which takes whole words of 32 codes.

    Raises:
        InputError: they would, and the weight has no multiple of 32 inputs and outputs.
    """
    planes = _in_planes(bits, _label(module) == PLANAR)
    if planes and (module.shape[0] % WORD_BITS or module.shape[1] % WORD_BITS):
        raise module.malformed(
            "qweight", f"{bits} bits in planes", f"multiples of 32 for a weight of [out, in] = {list(module.shape)}"
        )
    return planes


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in float16, as AutoGPTQ and GPTQModel themselves dequantize it."""
    n_out, n_in = module.shape
    bits = _bits(module)
    module.expect_shape("qweight", (packed_length(n_in, bits), n_out))
    qzeros, stored = _stored_zeros(module, bits)
    version, _ = _version(module, stored, bits)
    scales = module.read("scales")
    groups, planes = _groups(module, scales.shape[0]), _planar(module, bits)
    return dequantize_gptq(module.read("qweight"), qzeros, scales, groups, bits, version, planes)


def verify(module: PackedModule) -> None:
    """Raise an InputError unless a linear's width is known, and its layout can hold it."""
    _planar(module, _bits(module))


def describe(module: PackedModule) -> Quantization:
    """Bits, group size, order and version, from the tensors where they decide; "planar" is version 2 in planes."""
    bits = _bits(module)
    _, stored = _stored_zeros(module, bits)
    version, warning = _version(module, stored, bits)
    groups = _groups(module, stored.shape[0])
    facts = {
        "bits": bits,
        "group_size": module.number("group_size", default=int(torch.bincount(groups).max())),
        "symmetric": module.flag("sym", default=contradicted_version(stored, bits) is not None),
        "act_order": bool((groups.diff() < 0).any()),
        "version": "planar" if _planar(module, bits) else version,
    }
    return Quantization(facts, [warning] if warning else [])


GPTQ = PackedFormat(
    "gptq",
    "qweight",
    {
        "qweight": TensorRule((torch.int32,)),
        "qzeros": TensorRule((torch.int32,)),
        "scales": TensorRule(FLOATS),
        "g_idx": TensorRule(INTEGERS, (1,), required=False),
    },
    dequantize,
    describe,
    verify,
)
