"""Files that hold all experts of a block in one tensor (gpt-oss), seen as if each expert's linears had tensors of
their own.

Dense ones are [experts, in, out]. In MXFP4 they are `…_blocks`, [experts, out, in / 32, 16] bytes, and `…_scales`,
[experts, out, in / 32].
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interp.architectures import Architecture
from interp.errors import InputError
from interp.experts import DOWN, GATE_UP
from interp.formats.packed import PackedFormat, PackedModule, Quantization, TensorRule
from interp.formats.placing import placed
from interp.formats.shards import Header, Shards

GROUP = 32
"""Inputs that share a power of two."""
DIMENSIONS = {"weight": 3, "blocks": 4, "scales": 3}
"""Suffix of an expert's tensor → dimensions of the tensor that holds it for all experts."""


def open_shards(directory: Path, row: Architecture) -> Shards:
    """The tensors of a directory, those of experts apart.

    Raises:
        InputError: as `Shards`; a tensor of all experts of another number of dimensions.
    """
    stacked = row.experts is not None and row.experts.stacked
    return StackedShards(directory) if stacked else Shards(directory)


class StackedShards(Shards):
    """As `Shards`, with `experts.3.down_proj.weight` (or `.blocks` and `.scales`) in place of `experts.down_proj`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._slices: dict[str, tuple[str, int]] = {}
        stacked = re.compile(rf"(.*\.experts)\.({GATE_UP}|{DOWN})(?:_(blocks|scales))?")
        for name in [name for name in self.headers if stacked.fullmatch(name)]:
            module, linear, suffix = re.fullmatch(stacked, name).groups()  # type: ignore[union-attr]
            self._take_apart(name, module, f"{linear}.{suffix or 'weight'}")

    def read(self, name: str) -> Tensor:
        """One tensor; a dense one of an expert is turned to [out, in]."""
        if name not in self._slices:
            return super().read(name)
        stored, expert = self._slices[name]
        header = self.headers[name]
        tensor = placed(self._open.reading(header.file, header.n_bytes).get_slice(stored)[expert])
        return tensor.T.contiguous() if name.endswith(".weight") else tensor

    def _take_apart(self, name: str, module: str, of_expert: str) -> None:
        header = self.headers.pop(name)
        suffix = of_expert.rpartition(".")[2]
        if len(header.shape) != DIMENSIONS[suffix]:
            raise InputError(
                f"The tensor {name!r} of {header.file} has the shape {list(header.shape)}",
                f"{DIMENSIONS[suffix]} dimensions, the first one of experts",
                "Write or download the checkpoint again",
            )
        count, *each = header.shape
        shape = tuple(reversed(each) if suffix == "weight" else each)
        for expert in range(count):
            self.headers[f"{module}.{expert}.{of_expert}"] = Header(header.file, header.dtype, shape)
            self._slices[f"{module}.{expert}.{of_expert}"] = (name, expert)


def verify(module: PackedModule) -> None:
    """Raise an InputError unless the shapes are those of MXFP4."""
    n_out, n_in = module.shape
    if n_in % GROUP:
        raise module.malformed("blocks", f"groups of {GROUP} inputs", f"a size that divides {n_in} inputs")
    module.expect_shape("blocks", (n_out, n_in // GROUP, GROUP // 2))
    module.expect_shape("scales", (n_out, n_in // GROUP))


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in bfloat16, which holds every product of a number of four bits and a power of two."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    verify(module)
    n_out, n_in = module.shape
    numbers = unpack_fp4_from_uint8(module.read("blocks").reshape(n_out, n_in // 2), n_out, n_in)
    weight = numbers.float() * module.scales("scales").repeat_interleave(GROUP, dim=1)
    return module.numbers("scales", weight.to(torch.bfloat16))


def describe(module: PackedModule) -> Quantization:
    """Bits and group size."""
    return Quantization({"bits": 4, "group_size": GROUP, "symmetric": True}, [])


STACKED_MXFP4 = PackedFormat(
    "mxfp4",
    "blocks",
    {"blocks": TensorRule((torch.uint8,), (3,)), "scales": TensorRule((torch.uint8,))},
    dequantize,
    describe,
    verify,
)
