"""NVIDIA ModelOpt (`quant_method: modelopt`): NVFP4, whose `weight_scale_2` is a multiplier, and FP8 with one scale.

Layouts: modelopt 0.47, `torch/quantization/qtensor/nvfp4_tensor.py` and `fp8_tensor.py`; dequantized in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from interp.errors import InputError
from interp.formats.packed import (
    FLOATS,
    OF_ACTIVATIONS,
    PackedFormat,
    PackedModule,
    Quantization,
    TensorRule,
    activation_warning,
)
from interp.formats.packing import look_up_pairs

METHODS = ("modelopt", "modelopt_fp4")
WEIGHTS_ALONE = ("W4A16_NVFP4",)
"""Values of `quant_algo` whose engine rounds no activations."""
ALGORITHMS = {"nvfp4": ("NVFP4", *WEIGHTS_ALONE), "fp8": ("FP8",)}
"""Layout by its tensors → what `quant_algo` may be."""
MIXED = "MIXED_PRECISION"
GROUP_SIZE = 16
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers of four bits by their code; with the highest bit, the same less than zero."""


def dequantize_nvfp4(
    packed: UInt8[Tensor, "out bytes"], scales: Float32[Tensor, "out groups"], scale: Float32[Tensor, ""]
) -> Float32[Tensor, "out in"]:
    """Dense weight value·(scale of the group · scale of the weight) in float32.

    Args:
        packed: two codes in each byte along the input, the first in its low half.
        scales: of each group of consecutive inputs.
        scale: of the whole weight.
    """
    positive = torch.tensor(E2M1, device=packed.device)
    values = torch.cat([positive, -positive])
    grouped = look_up_pairs(packed.flatten(), values, high_first=False).reshape(*scales.shape, -1)
    return (grouped * (scales * scale)[..., None]).reshape(packed.shape[0], -1)


def translate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization config under one label, also where it is a `hf_quant_config.json`; another's is unchanged."""
    producer, nested = settings.get("producer"), settings.get("quantization")
    of_modelopt = isinstance(producer, dict) and producer.get("name") == "modelopt"
    if settings.get("quant_method") not in METHODS and not (of_modelopt and isinstance(nested, dict)):
        return dict(settings)
    flat = {**settings, **(nested if isinstance(nested, dict) else {}), "quant_method": METHODS[0]}
    version = producer.get("version") if isinstance(producer, dict) else None
    return flat | {"meta": {"quantizer": f"modelopt:{version}" if isinstance(version, str) else "modelopt"}}


def _algorithm(module: PackedModule, layout: str) -> str:
    """The `quant_algo` of the config, which must be one that stores weights in this layout.

    Raises:
        InputError: another, or none.
    """
    algorithm = module.text("quant_algo", default=ALGORITHMS[layout][0])
    if algorithm not in (*ALGORITHMS[layout], MIXED):
        raise InputError(
            f"{module.shards.directory} is quantized by ModelOpt with quant_algo {algorithm!r}, and {module.name} is "
            f"stored as {layout}",
            " or ".join(ALGORITHMS[layout]),
            "Other algorithms of ModelOpt are not supported",
        )
    return algorithm


def verify_nvfp4(module: PackedModule) -> None:
    """Raise an InputError unless the shapes are those of NVFP4, and the config says nothing else."""
    _algorithm(module, "nvfp4")
    n_out, n_in = module.shape
    size = module.number("group_size", default=GROUP_SIZE)
    if size != GROUP_SIZE or n_in % size:
        raise module.malformed("weight_scale", f"groups of {size}", f"{GROUP_SIZE} inputs each, of {n_in}")
    module.expect_shape("weight", (n_out, n_in // 2))
    module.expect_shape("weight_scale", (n_out, n_in // size))
    module.expect_one("weight_scale_2")


def read_nvfp4(module: PackedModule) -> Float32[Tensor, "out in"]:
    """The dense weight in float32, as ModelOpt itself dequantizes it."""
    verify_nvfp4(module)
    scales, scale = module.scales("weight_scale").float(), module.scales("weight_scale_2").reshape(())
    return module.numbers("weight_scale", dequantize_nvfp4(module.read("weight"), scales, scale))


def verify_fp8(module: PackedModule) -> None:
    """Raise an InputError unless there is one scale for a weight of its own shape, and the config says nothing else."""
    _algorithm(module, "fp8")
    module.expect_shape("weight", module.shape)
    module.expect_one("weight_scale")


def read_fp8(module: PackedModule) -> Float32[Tensor, "out in"]:
    """The dense weight in float32, as ModelOpt itself dequantizes it."""
    verify_fp8(module)
    return module.numbers("weight", module.read("weight").float() * module.scales("weight_scale").float().reshape(()))


def _described(module: PackedModule, layout: str, bits: int, group_size: int) -> Quantization:
    algorithm = _algorithm(module, layout)
    facts = {"bits": bits, "group_size": group_size, "symmetric": True, "act_order": False, "version": algorithm}
    rounded = algorithm not in WEIGHTS_ALONE
    return Quantization(facts, [activation_warning(module.shards.directory)] if rounded else [])


MODELOPT_NVFP4 = PackedFormat(
    "modelopt",
    "weight_scale_2",
    {
        "weight": TensorRule((torch.uint8,)),
        "weight_scale": TensorRule((torch.float8_e4m3fn,)),
        "weight_scale_2": TensorRule((torch.float32,), (0, 1)),
        "input_scale": OF_ACTIVATIONS,
    },
    read_nvfp4,
    lambda module: _described(module, "nvfp4", 4, GROUP_SIZE),
    verify_nvfp4,
)
MODELOPT_FP8 = PackedFormat(
    "modelopt",
    "weight_scale",
    {
        "weight": TensorRule((torch.float8_e4m3fn,)),
        "weight_scale": TensorRule(FLOATS, (0, 1)),
        "input_scale": OF_ACTIVATIONS,
    },
    read_fp8,
    lambda module: _described(module, "fp8", 8, module.shape[1]),
    verify_fp8,
)
