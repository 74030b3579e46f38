"""compressed-tensors, NVFP4 and MXFP4: numbers of four bits (E2M1), two in a byte, in groups of 16 or 32 inputs.

Unpacked and dequantized by the `compressed-tensors` package itself, in bfloat16. `weight_global_scale` is a divisor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.formats.compressed_config import (
    ACTIVATION_PARTS,
    activation_warnings,
    refuse_other_layouts,
    schemes_of,
)
from interp.formats.packed import PackedFormat, PackedModule, Quantization, TensorRule

BITS = 4
GROUPS = {"nvfp4-pack-quantized": 16, "mxfp4-pack-quantized": 32}
"""Layout → inputs of a group."""


def _layout(module: PackedModule) -> str:
    """NVFP4 has a scale for the whole weight, or FP8 scales that cannot be without one; MXFP4 has powers of two.

    Raises:
        InputError: FP8 scales without the one for the whole weight.
    """
    if module.header("weight_scale").dtype == torch.float8_e4m3fn:
        module.require("weight_global_scale")
    return "nvfp4-pack-quantized" if "weight_global_scale" in module else "mxfp4-pack-quantized"


def verify(module: PackedModule) -> None:
    """Raise an InputError unless the shapes are those of the layout, and the config says nothing else."""
    layout = _layout(module)
    refuse_other_layouts(module, layout)
    n_out, n_in = module.shape
    size = GROUPS[layout]
    if n_in % size:
        raise module.malformed("weight_packed", f"groups of {size} inputs", f"a size that divides {n_in} inputs")
    module.expect_shape("weight_packed", (n_out, n_in // 2))
    module.expect_shape("weight_scale", (n_out, n_in // size))
    if "weight_global_scale" in module:
        module.expect_one("weight_global_scale")
    schemes = schemes_of(module, "float")
    fitting = [s for s in schemes if (s.num_bits, s.group_size, s.symmetric) == (BITS, size, True)]
    if schemes and not fitting:
        sizes = ", ".join(f"{scheme.num_bits} bits in groups of {scheme.group_size}" for scheme in schemes)
        raise module.malformed("weight_packed", f"{BITS} bits in groups of {size}", f"what the config says ({sizes})")


def dequantize(module: PackedModule) -> Float[Tensor, "out in"]:
    """The dense weight in bfloat16, as compressed-tensors itself dequantizes it."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize as by_package

    verify(module)
    size, several = GROUPS[_layout(module)], "weight_global_scale" in module
    strategy = "tensor_group" if several else "group"
    arguments = QuantizationArgs(num_bits=BITS, type="float", strategy=strategy, group_size=size)
    weight = by_package(
        unpack_fp4_from_uint8(module.read("weight_packed"), *module.shape),
        module.scales("weight_scale").to(torch.bfloat16),
        args=arguments,
        global_scale=module.scales("weight_global_scale").reshape(1) if several else None,
        dtype=torch.bfloat16,
    )
    return module.numbers("weight_packed", weight)


def describe(module: PackedModule) -> Quantization:
    """Layout and group size, from the tensors."""
    layout = _layout(module)
    facts = {
        "bits": BITS,
        "layout": layout,
        "group_size": GROUPS[layout],
        "symmetric": True,
        "act_order": False,
        "version": module.settings.get("version"),
    }
    return Quantization(facts, activation_warnings(module))


NVFP4 = PackedFormat(
    "compressed-tensors",
    "weight_global_scale",
    {
        "weight_packed": TensorRule((torch.uint8,)),
        "weight_scale": TensorRule((torch.float8_e4m3fn,)),
        "weight_global_scale": TensorRule((torch.float32,), (0, 1)),
        **ACTIVATION_PARTS,
    },
    dequantize,
    describe,
    verify,
)
MXFP4 = PackedFormat(
    "compressed-tensors",
    "weight_packed",
    {
        "weight_packed": TensorRule((torch.uint8,)),
        "weight_scale": TensorRule((torch.uint8, torch.float8_e8m0fnu, torch.float8_e4m3fn)),
        **ACTIVATION_PARTS,
    },
    dequantize,
    describe,
    verify,
)
