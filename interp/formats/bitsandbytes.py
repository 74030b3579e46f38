"""bitsandbytes: NF4 and FP4, whose blocks of 16 values have a largest magnitude each, and LLM.int8().

Layouts: bitsandbytes 0.50, `functional.py` (`QuantState`) and `backends/default/ops.py`. Blocks run over the weight row
by row, so one may begin in one row and end in the next (for 4 bits, 0.50.2's own AVX-512 kernel overlooks that).
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Float32, Int8, UInt8
from pydantic import BaseModel, Field
from torch import Tensor

from interp.documents import checked, parse_json
from interp.formats.packed import (
    FLOATS,
    PackedFormat,
    PackedModule,
    Quantization,
    TensorRule,
    activation_warning,
)
from interp.formats.packing import look_up_pairs

STORAGE = (torch.uint8, *FLOATS)
"""Types that the packed codes may be stored as (`bnb_4bit_quant_storage`); their bytes are what counts."""
QUANT_STATES = {kind: f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")}
"""Kind of 4-bit number → the tensor that holds the JSON of its settings."""
BY_127 = 7.874015718698502e-3
"""What the library multiplies int8 codes with instead of dividing by 127."""
OUTPUTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
BlockSize = Annotated[int, Field(ge=1, lt=2**31)]


class QuantState(BaseModel, extra="forbid", strict=True):
    """The settings of one 4-bit linear, as its JSON gives them; `nested_*` where its magnitudes are quantized, too."""

    quant_type: Literal["nf4", "fp4"]
    blocksize: BlockSize
    dtype: Literal["float16", "bfloat16", "float32"]
    shape: list[int]
    nested_blocksize: BlockSize | None = None
    nested_dtype: Literal["float32"] | None = None
    nested_offset: Annotated[float, Field(allow_inf_nan=False)] | None = None


def dequantize_4bit(
    packed: UInt8[Tensor, " bytes"],
    table: Float32[Tensor, 16],
    absmax: Float32[Tensor, " blocks"],
    blocksize: int,
    shape: tuple[int, int],
) -> Float32[Tensor, "out in"]:
    """Dense weight value·absmax in float32.

    Args:
        packed: two codes in each byte, the first in its high half; row by row.
        table: the value of each code.
        absmax: the largest magnitude of each block.
        blocksize: weights of a block; the last may have fewer.
        shape: [out, in].
    """
    count = shape[0] * shape[1]
    values = look_up_pairs(packed, table, high_first=True)[:count]
    return (values * absmax.repeat_interleave(blocksize)[:count]).reshape(shape)


def dequantize_int8(codes: Int8[Tensor, "out in"], scb: Float32[Tensor, " out"]) -> Float32[Tensor, "out in"]:
    """Dense weight q·SCB/127 in float32, in the library's order of multiplications."""
    return codes * scb[:, None] * BY_127


def _state(module: PackedModule) -> QuantState:
    """The settings of a 4-bit linear, held against its tensors and its shape.

    Raises:
        InputError: none or two, no such JSON, another weight's, or a type that the config contradicts.
    """
    present = [suffix for suffix in QUANT_STATES.values() if suffix in module]
    if len(present) != 1:
        raise module.malformed("weight.absmax", f"{len(present)} quant_state tensors beside it", "one, for nf4 or fp4")
    where = f"The tensor '{module.name}.{present[0]}' of {module.header(present[0]).file}"
    state = checked(QuantState, parse_json(bytes(module.read(present[0]).tolist()), where, unique_keys=True), where)
    declared = module.text("bnb_4bit_quant_type", default=state.quant_type)
    if QUANT_STATES[state.quant_type] != present[0] or declared != state.quant_type:
        raise module.malformed(present[0], f"the quant_type {state.quant_type!r}", f"{declared!r}, as the config says")
    if tuple(state.shape) != module.shape:
        raise module.malformed(present[0], f"the shape {state.shape}", f"[out, in] = {list(module.shape)}")
    return state


def _expect_vector(module: PackedModule, suffix: str, length: int, *dtypes: torch.dtype) -> None:
    module.expect_part(suffix, TensorRule(dtypes, (1,)))
    module.expect_shape(suffix, (length,))


def verify(module: PackedModule) -> None:
    """Raise an InputError unless all tensors of a 4-bit linear have the lengths and types that its settings ask for."""
    _verified(module)


def _verified(module: PackedModule) -> QuantState:
    state = _state(module)
    count = module.shape[0] * module.shape[1]
    blocks = ceil(count / state.blocksize)
    if module.header("weight").n_bytes != _stored_bytes(module, count):
        raise module.malformed(
            "weight", f"{module.header('weight').n_bytes} bytes", f"{_stored_bytes(module, count)} for {count} weights"
        )
    _expect_vector(module, "weight.quant_map", 16, torch.float32)
    if state.nested_blocksize is None:
        _expect_vector(module, "weight.absmax", blocks, torch.float32)
        return state
    if state.nested_offset is None:
        raise module.malformed(QUANT_STATES[state.quant_type], "a nested_blocksize", "a nested_offset beside it")
    _expect_vector(module, "weight.absmax", blocks, torch.uint8)
    _expect_vector(module, "weight.nested_absmax", ceil(blocks / state.nested_blocksize), torch.float32)
    _expect_vector(module, "weight.nested_quant_map", 256, torch.float32)
    return state


def _stored_bytes(module: PackedModule, count: int) -> int:
    """Bytes of so many packed codes, filled up to whole numbers of the type that they are stored as."""
    width = module.header("weight").dtype.itemsize
    return ceil(ceil(count / 2) / width) * width


def _absmax(module: PackedModule, state: QuantState) -> Float32[Tensor, " blocks"]:
    if state.nested_blocksize is None or state.nested_offset is None:
        return module.scales("weight.absmax")
    codes = module.read("weight.absmax").int()
    outer = module.scales("weight.nested_absmax").repeat_interleave(state.nested_blocksize)[: len(codes)]
    return module.scales("weight.nested_quant_map")[codes] * outer + torch.tensor(state.nested_offset)


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight of a 4-bit linear in the type that its settings name, as bitsandbytes itself dequantizes it."""
    state = _verified(module)
    packed = module.read("weight").flatten().view(torch.uint8)
    table, absmax = module.scales("weight.quant_map"), _absmax(module, state)
    weight = dequantize_4bit(packed, table, absmax, state.blocksize, module.shape)
    return module.numbers("weight", weight.to(OUTPUTS[state.dtype]))


def describe(module: PackedModule) -> Quantization:
    """Kind of number and size of a block, from the settings of one linear."""
    state = _state(module)
    facts = {
        "bits": 4,
        "group_size": state.blocksize,
        "symmetric": state.quant_type == "fp4",
        "act_order": False,
        "version": state.quant_type,
        "nested": state.nested_blocksize is not None,
    }
    return Quantization(facts, [])


def verify_int8(module: PackedModule) -> None:
    """Raise an InputError unless the shapes of an 8-bit linear belong together, and its rows are stored as rows."""
    module.expect_shape("weight", module.shape)
    module.expect_shape("SCB", module.shape[:1])
    if "weight_format" in module and int(module.read("weight_format")) != 0:
        raise module.malformed(
            "weight_format", f"the value {int(module.read('weight_format'))}", "0, for rows; tiled weights are not read"
        )


def read_int8(module: PackedModule) -> Float32[Tensor, "out in"]:
    """The dense weight of an 8-bit linear in float32, as bitsandbytes itself dequantizes it."""
    verify_int8(module)
    return dequantize_int8(module.read("weight"), module.scales("SCB"))


def describe_int8(module: PackedModule) -> Quantization:
    """Of an 8-bit linear: one scale for each row."""
    facts: dict[str, Any] = {
        "bits": 8,
        "group_size": module.shape[1],
        "symmetric": True,
        "act_order": False,
        "version": "int8",
    }
    return Quantization(facts, [activation_warning(module.shards.directory)])


BITSANDBYTES_4BIT = PackedFormat(
    "bitsandbytes",
    "weight.absmax",
    {
        "weight": TensorRule(STORAGE, (1, 2)),
        "weight.absmax": TensorRule((torch.float32, torch.uint8), (1,)),
        "weight.quant_map": TensorRule((torch.float32,), (1,)),
        "weight.nested_absmax": TensorRule((torch.float32,), (1,), required=False),
        "weight.nested_quant_map": TensorRule((torch.float32,), (1,), required=False),
        **{suffix: TensorRule((torch.uint8,), (1,), required=False) for suffix in QUANT_STATES.values()},
    },
    dequantize,
    describe,
    verify,
)
BITSANDBYTES_INT8 = PackedFormat(
    "bitsandbytes",
    "SCB",
    {
        "weight": TensorRule((torch.int8,)),
        "SCB": TensorRule((torch.float32,), (1,)),
        "weight_format": TensorRule((torch.uint8,), (0,), required=False),
    },
    read_int8,
    describe_int8,
    verify_int8,
)
