"""HQQ: codes with scales and zero points that are no integers; w = (q - z)·s, rounded at each step.

Layout: hqq 0.2.8, `core/quantize.py` and `core/bitpack.py`, as `HQQLinear.state_dict` and transformers 4 save it:
beside codes, scales and zero points every setting of a linear is a tensor of its own. Groups run over the weight as it
lies in memory: with axis 1 a group is a row of the grid of codes, with axis 0 a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from interp.formats.packed import FLOATS, PackedFormat, PackedModule, Quantization, TensorRule

PACKINGS = {"8bit_u8": (8, 8), "4bit_u8": (4, 8), "3bit_32": (3, 30), "2bit_u8": (2, 8), "1bit_u8": (1, 8)}
"""Name of a packing → bits of a code, and how many of a word's lowest bits hold codes."""
PACKING_OF_BITS = {
    8.0: "8bit_u8",
    6.0: "8bit_u8",
    5.0: "8bit_u8",
    4.0: "4bit_u8",
    3.0: "3bit_32",
    2.0: "2bit_u8",
    1.58: "2bit_u8",
    1.0: "1bit_u8",
}
COMPUTED_IN = {f"torch.{dtype}": getattr(torch, dtype) for dtype in ("float16", "bfloat16", "float32")}
NUMBER = TensorRule((torch.int32, torch.int64, torch.float32), (0, 1), of_weight=False)
TRUTH = TensorRule((torch.uint8,), (0, 1), required=False, of_weight=False)
TEXT = TensorRule((torch.uint8,), (1,), of_weight=False)
SHAPE = TensorRule((torch.int32, torch.int64), (1,), of_weight=False)
DECLARED = ("nbits", "group_size", "axis")
"""Settings of a linear that config.json says, too."""


@dataclass(frozen=True)
class Grid:
    """How the codes of one linear are laid out.

    Attributes:
        bits: of a code; 1.58 of those with three values.
        packing: a key of `PACKINGS`.
        group_size: weights that share a scale and a zero point.
        axis: along which of the grid's two axes a group runs.
        rows: of the grid.
        columns: of the grid.
        dtype: that the weight is computed in.
    """

    bits: float
    packing: str
    group_size: int
    axis: int
    rows: int
    columns: int
    dtype: torch.dtype

    @property
    def word(self) -> torch.dtype:
        """The type of a word of codes."""
        return torch.int32 if self.packing == "3bit_32" else torch.uint8

    @property
    def words(self) -> tuple[int, int]:
        """Rows and columns of the packed codes."""
        width, span = PACKINGS[self.packing]
        return ceil(self.rows / (span // width)), self.columns

    @property
    def scales(self) -> tuple[int, int]:
        """Shape of scales and of zero points."""
        return (self.rows, 1) if self.axis == 1 else (1, self.columns)


def unpack(
    words: UInt8[Tensor, "words columns"] | Int32[Tensor, "words columns"], packing: str
) -> UInt8[Tensor, "rows columns"]:
    """The codes of a packing: the highest bits of all words, then those below them, and so on."""
    width, span = PACKINGS[packing]
    shifts = range(span - width, -1, -width)
    return torch.cat([((words >> shift) & ((1 << width) - 1)).to(torch.uint8) for shift in shifts])


def dequantize_hqq(
    words: UInt8[Tensor, "words columns"] | Int32[Tensor, "words columns"],
    scale: Float[Tensor, "some groups"],
    zero: Float[Tensor, "some groups"],
    packing: str,
    rows: int,
) -> Float[Tensor, "rows columns"]:
    """The grid of dense weights (q - z)·s, with two roundings in the dtype of the scales.

    Args:
        words: packed codes.
        scale: one for each row or each column of the grid.
        zero: as many zero points.
        packing: a key of `PACKINGS`.
        rows: of the grid; the last words of three bits may hold more.
    """
    return (unpack(words, packing)[:rows].to(scale.dtype) - zero) * scale


def _grid(module: PackedModule) -> Grid:
    """The settings of a linear, held against its shape and the config.

    Raises:
        InputError: an unknown width, packing or type, another weight's shape, quantized scales, or a config that says
            something else.
    """
    for suffix in ("quant_scale", "quant_zero"):
        if suffix in module and _number(module, suffix):
            raise module.malformed(suffix, "1: its scales or zero points are quantized themselves", "0")
    if "channel_wise" in module and not _number(module, "channel_wise"):
        raise module.malformed("channel_wise", "0: one scale for the whole weight", "1, for groups")
    bits, size, axis = (_number(module, suffix) for suffix in DECLARED)
    packing = _text(module, "packing")
    if packing != PACKING_OF_BITS.get(round(bits, 2)):
        known = ", ".join(f"{width:g} ({name})" for width, name in PACKING_OF_BITS.items())
        raise module.malformed("packing", f"the packing {packing!r} of {bits:g} bits", f"one of {known}")
    if axis not in (0, 1):
        raise module.malformed("axis", f"the value {axis:g}", "0 or 1")
    if tuple(module.read("shape").tolist()) != module.shape:
        raise module.malformed("shape", f"the shape {module.read('shape').tolist()}", str(list(module.shape)))
    count = module.shape[0] * module.shape[1]
    if not size.is_integer() or size < 1 or count % size:
        raise module.malformed("group_size", f"the value {size:g}", f"a divisor of {count} weights")
    group_size = int(size)
    _require_declared(module, {"nbits": round(bits, 2), "group_size": group_size, "axis": int(axis)})
    rows, columns = (count // group_size, group_size) if axis == 1 else (group_size, count // group_size)
    return Grid(round(bits, 2), packing, group_size, int(axis), rows, columns, _dtype(module))


def _number(module: PackedModule, suffix: str) -> float:
    module.expect_one(suffix)
    return float(module.read(suffix).item())


def _text(module: PackedModule, suffix: str) -> str:
    return bytes(module.read(suffix).tolist()).decode("ascii", errors="replace")[:80]


def _dtype(module: PackedModule) -> torch.dtype:
    """What the weight is computed in: as a setting says, else the type of the scales.

    Raises:
        InputError: another type.
    """
    if "compute_dtype" not in module:
        return module.header("scale").dtype
    said = _text(module, "compute_dtype")
    if said not in COMPUTED_IN:
        raise module.malformed("compute_dtype", f"the type {said!r}", " or ".join(COMPUTED_IN))
    return COMPUTED_IN[said]


def _require_declared(module: PackedModule, found: Mapping[str, float]) -> None:
    """Raise an InputError where config.json says other settings: of all linears, or of those with this one's name."""
    said = module.settings.get("quant_config")
    if not isinstance(said, dict):
        return
    tag = ".".join(part for part in module.name.split(".") if part not in ("model", "layers") and not part.isdigit())
    own = said.get(tag, said)
    declared = own.get("weight_quant_params") if isinstance(own, dict) else None
    for key, value in found.items():
        expected: Any = declared.get(key) if isinstance(declared, dict) else None
        if expected not in (None, value):
            raise module.malformed(key, f"the value {value:g}", f"{str(expected)[:80]}, as the config says")


def verify(module: PackedModule) -> None:
    """Raise an InputError unless settings and shapes of a linear belong together."""
    _verified(module)


def _verified(module: PackedModule) -> Grid:
    grid = _grid(module)
    rows, columns = grid.words
    header = module.header("W_q")
    per_word = PACKINGS[grid.packing][1] // PACKINGS[grid.packing][0]
    if grid.word == torch.uint8 and grid.rows % per_word:
        raise module.malformed("group_size", f"{grid.rows} rows of codes", f"a multiple of {per_word}")
    if not header.dtype.is_floating_point and header.dtype != grid.word:
        raise module.malformed("W_q", f"type {header.dtype}", f"{grid.word} for {grid.bits:g} bits")
    width, rest = divmod(columns * grid.word.itemsize, header.dtype.itemsize)  # float types hold the words' bytes
    module.expect_shape("W_q", (rows, width if not rest else -1))
    module.expect_shape("scale", grid.scales)
    module.expect_shape("zero", grid.scales)
    return grid


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in the type that its settings name, as hqq itself dequantizes it."""
    grid = _verified(module)
    words = module.read("W_q").contiguous().view(grid.word)
    scale, zero = module.scales("scale").to(grid.dtype), module.finite("zero").to(grid.dtype)
    weight = dequantize_hqq(words, scale, zero, grid.packing, grid.rows)
    return module.numbers("scale", weight.reshape(module.shape))


def describe(module: PackedModule) -> Quantization:
    """Bits, group size and axis, from the settings of one linear."""
    grid = _grid(module)
    bits = int(grid.bits) if grid.bits.is_integer() else grid.bits
    facts = {
        "bits": bits,
        "group_size": grid.group_size,
        "symmetric": False,
        "act_order": False,
        "version": f"axis {grid.axis}",
    }
    return Quantization(facts, [])


HQQ = PackedFormat(
    "hqq",
    "W_q",
    {
        "W_q": TensorRule((torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float32)),
        "scale": TensorRule(FLOATS),
        "zero": TensorRule(FLOATS),
        **dict.fromkeys(DECLARED, NUMBER),
        "shape": SHAPE,
        "packing": TEXT,
        **dict.fromkeys(("compute_dtype", "unpack_view_dtype"), replace(TEXT, required=False)),
        **dict.fromkeys(
            (
                *("view_as_float", "quant_scale", "quant_zero", "channel_wise", "optimize", "round_zero"),
                *("offload_meta", "encoded_state_dict", "stores_quant_config", "bitpack"),
            ),
            TRUTH,
        ),
    },
    dequantize,
    describe,
    verify,
)
