"""Files that hold all experts of a block in one tensor, seen as if each expert's linears had tensors of their own.

Dense ones are [experts, out, in], of gates and after them ups (Qwen 3.5; transformers' `save_original_format=False` of
any mixture), or [experts, in, out] (gpt-oss). In MXFP4 they are `…_blocks`, [experts, out, in / 32, 16] bytes, and
`…_scales`, [experts, out, in / 32].
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.architectures import MOST_EXPERTS, Architecture, Experts
from interp.errors import InputError
from interp.experts import DOWN, GATE_UP, ExpertSlice, stacked_linears
from interp.formats.packed import PackedFormat, PackedModule, Quantization, TensorRule
from interp.formats.placing import placed
from interp.formats.shards import Header, Shards
from interp.formats.wrappers import FURTHER_TOKENS

GROUP = 32
"""Inputs that share a power of two."""
DIMENSIONS = {"weight": 3, "blocks": 4, "scales": 3}
"""Suffix of an expert's tensor → dimensions of the tensor that holds it for all experts."""


def open_shards(directory: Path, row: Architecture) -> Shards:
    """The tensors of a directory, those of experts apart.

    Raises:
        InputError: as `StackedShards`.
    """
    return Shards(directory) if row.experts is None else StackedShards(directory, row.experts)


class StackedShards(Shards):
    """As `Shards`, with `experts.3.down_proj.weight` (or `.blocks` and `.scales`) in place of `experts.down_proj`.

    Raises:
        InputError: as `Shards`; a tensor of all experts of a shape that cannot be, or beside one of an expert alone.
    """

    def __init__(self, directory: Path, experts: Experts) -> None:
        super().__init__(directory)
        self._experts = experts
        self._slices: dict[str, ExpertSlice] = {}
        self._stacks: dict[str, Header] = {}
        further = re.escape(FURTHER_TOKENS)
        stacked = re.compile(rf"(?!{further})(.*\.experts)\.({GATE_UP}|{DOWN})(?:_(blocks|scales))?")
        for name in [name for name in self.headers if stacked.fullmatch(name)]:
            module, parameter, suffix = re.fullmatch(stacked, name).groups()  # type: ignore[union-attr]
            self._take_apart(name, module, stacked_linears(experts)[parameter], suffix or "weight")

    def read(self, name: str) -> Tensor:
        """One tensor; a dense one of an expert is [out, in]."""
        if name not in self._slices:
            return super().read(name)
        place, header = self._slices[name], self.headers[name]
        stored = self._open.reading(header.file, header.n_bytes).get_slice(place.parameter)
        if place.transposed:
            return placed(stored[place.expert]).T.contiguous()
        start = place.part * header.shape[0]
        return placed(stored[place.expert, start : start + header.shape[0]])

    def check_experts(self, config: Any) -> None:
        """Raise an InputError unless every tensor of all experts holds as many as the config says."""
        count = getattr(config, self._experts.count_key)
        for name, header in self._stacks.items():
            if header.shape[0] != count:
                raise _misshapen(name, header, f"{count} experts, as config.json says")

    def _take_apart(self, name: str, module: str, linears: tuple[str, ...], suffix: str) -> None:
        header = self._stacks[name] = self.headers.pop(name)
        if len(header.shape) != DIMENSIONS[suffix]:
            raise _misshapen(name, header, f"{DIMENSIONS[suffix]} dimensions, the first one of experts")
        count, *each = header.shape
        transposed = self._experts.transposed and suffix == "weight"
        rows, *rest = reversed(each) if transposed else each
        if count > MOST_EXPERTS or rows % len(linears):
            many = f" for each of {', '.join(linears)}" if len(linears) > 1 else ""
            raise _misshapen(name, header, f"at most {MOST_EXPERTS} experts, and as many rows{many}")
        of_one = Header(header.file, header.dtype, (rows // len(linears), *rest))
        for expert, (part, linear) in product(range(count), enumerate(linears)):
            own = f"{module}.{expert}.{linear}.{suffix}"
            if own in self.headers:
                raise InputError(
                    f"The tensor {own!r} of {self.headers[own].file} is part of {name!r} of {header.file}, too",
                    "each tensor once",
                    "Download or write the checkpoint again",
                )
            self.headers[own] = of_one
            self._slices[own] = ExpertSlice(name, expert, part, len(linears), transposed)


def _misshapen(name: str, header: Header, expected: str) -> InputError:
    return InputError(
        f"The tensor {name!r} of {header.file} has the shape {list(header.shape)}",
        expected,
        "Write or download the checkpoint again",
    )


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
