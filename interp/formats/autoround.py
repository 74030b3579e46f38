"""AutoRound's label (`quant_method: auto-round`): whole numbers, packed as AutoGPTQ, GPTQModel or AutoAWQ pack them.

Labels: auto-round 0.16, `inference/backend.py` and `inference/convert_model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import InputError

METHODS = ("auto-round", "intel/auto-round")
"""What AutoRound writes as `quant_method`; older versions the second."""
DEFAULT_PACKING = "auto_round:auto_gptq"
_ONE_LESS = {"quant_method": "gptq", "checkpoint_format": "gptq"}
_AS_THEY_ARE = {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
_AWQ = {"quant_method": "awq", "version": "gemm"}
PACKINGS = {
    DEFAULT_PACKING: _ONE_LESS,
    "auto_round:gptq": _ONE_LESS,
    "auto": _ONE_LESS,
    "auto_round": _AS_THEY_ARE,
    "auto_round:gptqmodel": _AS_THEY_ARE,
    "auto_round:auto_awq": _AWQ,
    "auto_round:awq": _AWQ,
}
"""`packing_format` → what the format's own writer would have said."""
UNROUNDED = (None, 16, 32)
"""Bits of activations that are not quantized."""
TAKEN = ("bits", "group_size", "sym")
BITS = (2, 3, 4, 8)
"""Those that AutoRound packs; of GPTQ there are more."""


def translate(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization config in the words of the format that the weights are packed in; another writer's is unchanged.

    Args:
        directory: of the checkpoint, for messages.
        settings: its quantization config.

    Raises:
        InputError: a packing that is not read, weights that are no integers, rotated or with rounded activations.
    """
    if settings.get("quant_method") not in METHODS:
        return dict(settings)
    packing = settings.get("packing_format", DEFAULT_PACKING)
    for what, value, right in (
        ("packing_format", packing, isinstance(packing, str) and packing in PACKINGS),
        ("data_type", kind := settings.get("data_type", "int"), kind == "int"),
        ("bits", bits := _widths(settings), all(width in BITS for width in bits)),
        ("act_bits", rounded := settings.get("act_bits"), rounded in UNROUNDED),
        ("rotation_config", rotation := settings.get("rotation_config"), not rotation),
    ):
        if not right:
            raise _refused(directory, what, value)
    taken = {key: settings[key] for key in TAKEN if key in settings}
    version = settings.get("autoround_version")
    meta = {"quantizer": f"auto_round:{version}" if isinstance(version, str) else "auto_round"}
    return {**taken, **PACKINGS[packing], "zero_point": settings.get("sym") is not True, "meta": meta}


def own_settings(settings: Mapping[str, Any], translated: dict[str, Any], module: str) -> dict[str, Any]:
    """The settings of one module: AutoRound gives some linears other bits or groups (`extra_config`).

    Args:
        settings: the quantization config as AutoRound wrote it.
        translated: what `translate` made of it.
        module: the linear's name.
    """
    extra = settings.get("extra_config") if settings.get("quant_method") in METHODS else None
    own = extra.get(module) if isinstance(extra, dict) else None
    if not isinstance(own, dict):
        return translated
    return translated | {key: own[key] for key in TAKEN if own.get(key) is not None}


def _widths(settings: Mapping[str, Any]) -> list[object]:
    """The bits of all linears, and of those that have their own, as far as they are said."""
    extra = settings.get("extra_config")
    own = [module for module in extra.values() if isinstance(module, dict)] if isinstance(extra, dict) else []
    return [given["bits"] for given in (settings, *own) if given.get("bits") is not None]


def _refused(directory: Path, key: str, value: object) -> InputError:
    expected = {
        "packing_format": " or ".join(map(repr, PACKINGS)),
        "data_type": "'int'",
        "bits": " or ".join(map(str, BITS)),
        "act_bits": "16, since rounded activations are not measured",
        "rotation_config": "none, since a rotated weight is not the model's own",
    }
    return InputError(
        f"{directory} is quantized by AutoRound with {key} = {str(value)[:80]!r}, which is not supported",
        expected[key],
        "Export it as auto_round:auto_gptq or auto_round:auto_awq",
    )
