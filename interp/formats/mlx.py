"""MLX's affine quantization: w = q·scale + bias in groups of inputs, in the dtype of the scales, rounded at each step.

Layout: mlx 0.32, `quantize` and `dequantize`; codes are one little-endian stream along the input. The config has no
`quant_method`, but `quantization` with `bits` and `group_size`, and other ones of single linears under their names.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from interp.errors import InputError
from interp.formats.packed import FLOATS, PackedFormat, PackedModule, Quantization, TensorRule
from interp.formats.packing import WORD_BITS, unpack_columns

BITS = (2, 3, 4, 5, 6, 8)


def dequantize_affine(
    words: Int32[Tensor, "out words"],
    scales: Float[Tensor, "out groups"],
    biases: Float[Tensor, "out groups"],
    bits: int,
) -> Float[Tensor, "out in"]:
    """Dense weight q·scale + bias.

    Args:
        words: codes packed along the input.
        scales: of each group of consecutive inputs.
        biases: what code 0 stands for in each group.
        bits: of a code.
    """
    n_out, n_in = words.shape[0], words.shape[1] * WORD_BITS // bits
    codes = unpack_columns(words, bits, n_in).to(scales.dtype).reshape(n_out, scales.shape[1], -1)
    return (codes * scales[..., None] + biases[..., None]).reshape(n_out, n_in)


def _sizes(module: PackedModule) -> tuple[int, int]:
    """Bits of a code and inputs of a group, by the shapes, which the config must not contradict.

    Raises:
        InputError: shapes of no width, or of others than the config says; a mode that has no biases.
    """
    n_out, n_in = module.shape
    words, groups = module.header_shape("weight")[1], module.header_shape("scales")[1]
    bits, rest = divmod(words * WORD_BITS, n_in)
    if rest or bits not in BITS or n_in % groups:
        raise module.malformed(
            "weight", f"shape {list(module.header_shape('weight'))}", f"[{n_out}, {n_in}·bits/32] of {BITS} bits"
        )
    own = module.settings.get(module.name)
    said: dict[str, Any] = {**module.settings, **(own if isinstance(own, dict) else {})}
    if said.get("mode", "affine") != "affine":
        raise InputError(
            f"{module.shards.directory} is quantized by MLX in the mode {str(said['mode'])[:80]!r}",
            "'affine'",
            "Quantize the model again with --q-mode affine",
        )
    for key, found in (("bits", bits), ("group_size", n_in // groups)):
        if said.get(key, found) != found:
            raise module.malformed("weight", f"{key} {found} by its shape", f"{said[key]}, as the config says")
    return bits, n_in // groups


def verify(module: PackedModule) -> None:
    """Raise an InputError unless the shapes belong together and are those that the config says."""
    _, size = _sizes(module)
    grid = (module.shape[0], module.shape[1] // size)
    module.expect_shape("weight", (module.shape[0], module.header_shape("weight")[1]))
    module.expect_shape("scales", grid)
    module.expect_shape("biases", grid)
    if module.header("biases").dtype != module.header("scales").dtype:
        raise module.malformed("biases", f"type {module.header('biases').dtype}", str(module.header("scales").dtype))


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in the dtype of its scales, as MLX itself dequantizes it."""
    verify(module)
    words = module.read("weight").view(torch.int32)
    weight = dequantize_affine(words, module.scales("scales"), module.finite("biases"), _sizes(module)[0])
    return module.numbers("scales", weight)


def describe(module: PackedModule) -> Quantization:
    """Bits and group size, by the shapes of one linear."""
    bits, size = _sizes(module)
    facts = {"bits": bits, "group_size": size, "symmetric": False, "act_order": False, "version": "affine"}
    return Quantization(facts, [])


MLX = PackedFormat(
    "mlx",
    "biases",
    {"weight": TensorRule((torch.uint32,)), "scales": TensorRule(FLOATS), "biases": TensorRule(FLOATS)},
    dequantize,
    describe,
    verify,
)
