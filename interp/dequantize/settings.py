"""Defaults and bounds of the options of `interp.dequantize`; light, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum

SHARD_GB = 2.0
"""Gigabytes (10⁹ bytes) of a file of weights, and what is held in memory at most, unless one tensor is larger."""


class ExportDtype(StrEnum):
    """What the exported numbers are stored in."""

    EXACT = "exact"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
