"""AWQ: 4-bit groups with zero points, in the layouts of AutoAWQ (GEMM, GEMV, GEMV-fast) and of GPTQModel (GEMM).

Layouts: AutoAWQ 0.2.9, `awq/modules/linear/{gemm,gemv,gemv_fast}.py`. All compute w = (q - z)·s in float16.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float16, Int, Int16, Int32, UInt8
from torch import Tensor

from interp.errors import InputError
from interp.formats.grouped import scale_codes
from interp.formats.packed import FLOATS, INTEGERS, PackedFormat, PackedModule, Quantization, TensorRule
from interp.formats.packing import bytes_of, spread, unpack_columns

BITS = 4
CODES_PER_WORD = 8
NIBBLE_OF_COLUMN = [0, 4, 1, 5, 2, 6, 3, 7]
"""Output column 8c + i sits in this nibble of packed column c; the inverse of the writer's [0, 2, 4, 6, 1, 3, 5, 7]."""
INTERLEAVE = 4
"""GEMV-fast: this many output rows share one int16."""


def gemm(
    qweight: Int32[Tensor, "in words"], qzeros: Int32[Tensor, "groups words"], scales: Float[Tensor, "groups out"]
) -> Float[Tensor, "out in"]:
    """Dense weight of the GEMM layout, packed along the output in AWQ's nibble order."""
    words = qweight.T.contiguous()  # to turn the words is less work than to turn the weights
    zeros, scales = _nibbles(qzeros.T), scales.T.contiguous()

    def codes(outputs: slice) -> UInt8[Tensor, "rows in"]:
        return _nibbles(words[outputs.start // CODES_PER_WORD : outputs.stop // CODES_PER_WORD])

    return scale_codes(codes, zeros.to(scales.dtype), scales, _groups(words.shape[1], scales.shape[1]))


def gemv(
    qweight: Int32[Tensor, "out words"],
    qzeros: Int32[Tensor, "out zero_words"],
    scales: Float[Tensor, "out padded_groups"],
    group_size: int,
) -> Float[Tensor, "out in"]:
    """Dense weight of the GEMV layout, packed along the input in linear order; scales and zeros are padded."""
    n_in = qweight.shape[1] * CODES_PER_WORD
    groups = n_in // group_size
    rows, scales = bytes_of(qweight), scales[:, :groups].contiguous()
    zeros = unpack_columns(qzeros, BITS, groups).to(scales.dtype)
    return scale_codes(lambda outputs: spread(rows[outputs], BITS), zeros, scales, _groups(n_in, groups))


def gemv_fast(
    qweight: Int16[Tensor, "out_quarter in"],
    scaled_zeros: Float16[Tensor, "padded_groups out"],
    scales: Float16[Tensor, "padded_groups out"],
    group_size: int,
) -> Float16[Tensor, "out in"]:
    """Dense weight of the GEMV-fast layout: w = fma(q, s, -s·z), rounded once, like the kernel's `__hfma2`."""
    n_in = qweight.shape[1]
    n_out = qweight.shape[0] * INTERLEAVE
    codes = _deinterleaved(qweight)
    groups = n_in // group_size
    scale, shift = (t[:groups].T.double().repeat_interleave(group_size, dim=1) for t in (scales, scaled_zeros))
    return torch.addcmul(shift, codes.reshape(n_out, n_in).double(), scale).half()


def _nibbles(words: Int32[Tensor, "words in"]) -> UInt8[Tensor, "out in"]:
    """The codes of eight outputs in each row of words, one row of bytes for each."""
    codes = torch.empty(words.shape[0], CODES_PER_WORD, words.shape[1], dtype=torch.uint8, device=words.device)
    for output, nibble in enumerate(NIBBLE_OF_COLUMN):
        codes[:, output] = (words >> (BITS * nibble)).bitwise_and_(0xF)
    return codes.view(-1, words.shape[1])


def _groups(n_in: int, groups: int) -> Int[Tensor, " in"]:
    """The group of each input: consecutive ones of one size."""
    return torch.arange(n_in) // (n_in // groups)


def _deinterleaved(qweight: Int16[Tensor, "quarter in"]) -> Int16[Tensor, "out in"]:
    """Undo `pack_intweight` of AutoAWQ's gemv_fast.py, step by step backwards."""
    quarter, n_in = qweight.shape
    stored = torch.stack([(qweight >> (BITS * row)) & 0xF for row in range(INTERLEAVE)], dim=-1)
    blocks = stored.reshape(quarter, n_in // 64, INTERLEAVE, 64).permute(0, 2, 1, 3)
    lanes = blocks.reshape(-1, n_in // 32, 4, 2, 4).transpose(-1, -2)  # [0, 2, 4, 6, 1, 3, 5, 7] back to linear
    pairs = lanes.reshape(-1, n_in // 32, 4, 4, 2).permute(0, 1, 3, 2, 4)
    return pairs.reshape(quarter * INTERLEAVE, n_in)


def _layout(module: PackedModule) -> str:
    """Tell the layouts apart by dtype and shape; the config's `version` is only a label.

    Raises:
        InputError: the shapes fit no layout, or the file is in the Marlin layout.
    """
    n_out, n_in = module.shape
    if "qzeros" not in module:
        version = module.text("version", default="").lower()
        if version == "marlin":
            raise InputError(
                f"{module.shards.directory} is AWQ in the Marlin layout (no zero points, tiled weights)",
                "one of the layouts GEMM, GEMV or GEMV-fast",
                "Convert it back to GEMM with the tool that wrote it, or quantize the model again",
            )
        module.require("qzeros")
    shape = module.header_shape("qweight")
    if module.header("qweight").dtype == torch.int16:
        if shape != (n_out // INTERLEAVE, n_in) or n_in % 64 or n_out % INTERLEAVE:
            raise _no_layout(module)
        return "gemv-fast"
    scales = module.header_shape("scales")  # needed too: the qweight of a square weight fits both layouts
    fits = {
        "gemm": shape == (n_in, n_out // CODES_PER_WORD) and not n_out % CODES_PER_WORD and scales[1:] == (n_out,),
        "gemv": shape == (n_out, n_in // CODES_PER_WORD) and not n_in % CODES_PER_WORD and scales[:1] == (n_out,),
    }
    for layout, fit in fits.items():
        if fit:
            return layout
    raise _no_layout(module)


def _no_layout(module: PackedModule) -> InputError:
    n_out, n_in = module.shape
    return module.malformed(
        "qweight",
        f"shape {list(module.header_shape('qweight'))} beside scales of {list(module.header_shape('scales'))}",
        f"[{n_in}, {n_out // CODES_PER_WORD}] (GEMM), [{n_out}, {n_in // CODES_PER_WORD}] (GEMV) or int16 "
        f"[{n_out // INTERLEAVE}, {n_in}] (GEMV-fast) for a 4-bit weight of [out, in] = {list(module.shape)}",
    )


def _expect_zeros(module: PackedModule) -> None:
    """GEMV-fast (int16 codes) stores -s·z as floating-point numbers, the others pack z into int32."""
    fast = module.header("qweight").dtype == torch.int16
    if module.header("qzeros").dtype not in (FLOATS if fast else (torch.int32,)):
        raise module.malformed(
            "qzeros",
            f"type {module.header('qzeros').dtype} beside codes of {module.header('qweight').dtype}",
            "floating-point zeros" if fast else "zeros packed into int32",
        )


def _group_size(module: PackedModule, layout: str) -> int:
    """The width of a group along the input, from the scales; what the config says must agree.

    Raises:
        InputError: the scales are not a whole number of equal groups, or the config gives another size.
    """
    n_in = module.shape[1]
    groups = module.header_shape("scales")[0] if layout == "gemm" else _padded_groups(module, layout)
    if n_in % groups:
        raise module.malformed("scales", f"{groups} groups", f"a number that divides {n_in} inputs")
    declared = module.number("group_size", "q_group_size", default=n_in // groups)
    if (n_in if declared == -1 else declared) != n_in // groups:
        raise module.malformed("scales", f"{groups} groups", f"{n_in} inputs in groups of {declared}")
    return n_in // groups


def _refuse_order(module: PackedModule) -> None:
    """A group index may only say what AWQ does anyway: consecutive groups."""
    if "g_idx" in module and bool((module.read("g_idx").diff() < 0).any()):
        raise module.malformed("g_idx", "groups that are not consecutive", "AWQ's groups of consecutive inputs")


def _padded_groups(module: PackedModule, layout: str) -> int:
    """How many groups a GEMV file has: its scales are padded with zeros to a whole word of zero points."""
    scales = module.scales("scales")
    used = scales.ne(0).any(dim=0 if layout == "gemv" else 1)
    return int(used.nonzero().max()) + 1


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in float16, as AutoAWQ itself dequantizes it."""
    declared_bits = module.number("bits", "w_bit", default=BITS)
    if declared_bits != BITS:
        raise InputError(
            f"{module.shards.directory} is AWQ with {declared_bits} bits",
            "4 bits",
            "Other widths of AWQ are not supported",
        )
    layout = _layout(module)
    _expect_zeros(module)
    _refuse_order(module)
    group_size = _group_size(module, layout)
    n_out, n_in = module.shape
    groups = n_in // group_size
    scales, qzeros = module.scales("scales"), module.read("qzeros")
    if layout == "gemm":
        module.expect_shape("scales", (groups, n_out))
        module.expect_shape("qzeros", (groups, n_out // CODES_PER_WORD))
        return gemm(module.read("qweight"), qzeros, scales)
    if layout == "gemv":
        padded = _at_least(module, "scales", scales.shape, groups, dim=1, across=n_out)
        if padded % CODES_PER_WORD:
            raise module.malformed("scales", f"{padded} groups with padding", "a multiple of 8")
        module.expect_shape("qzeros", (n_out, padded // CODES_PER_WORD))
        return gemv(module.read("qweight"), qzeros, scales, group_size)
    padded = _at_least(module, "scales", scales.shape, groups, dim=0, across=n_out)
    module.expect_shape("qzeros", (padded, n_out))
    return gemv_fast(module.read("qweight"), module.finite("qzeros"), scales, group_size)


def _at_least(module: PackedModule, suffix: str, shape: torch.Size, groups: int, dim: int, across: int) -> int:
    """The padded number of groups, which may exceed the real one and never fall short of it."""
    if shape[1 - dim] != across or shape[dim] < groups:
        raise module.malformed(suffix, f"shape {list(shape)}", f"at least {groups} groups for each of {across} outputs")
    return shape[dim]


def describe(module: PackedModule) -> Quantization:
    """Layout and group size, from the tensors."""
    layout = _layout(module)
    return Quantization(
        {
            "bits": BITS,
            "group_size": _group_size(module, layout),
            "symmetric": not module.flag("zero_point", default=True),
            "act_order": False,
            "version": layout,
        },
        [],
    )


AWQ = PackedFormat(
    "awq",
    "qweight",
    {
        "qweight": TensorRule((torch.int32, torch.int16)),
        "qzeros": TensorRule((torch.int32, *FLOATS)),
        "scales": TensorRule(FLOATS),
        "g_idx": TensorRule(INTEGERS, (1,), required=False),
    },
    dequantize,
    describe,
)
