"""Defaults and bounds of the options of `probes.matrix`; light, so that `--help` answers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def cell_name(row: pd.Series) -> str:
    """What a row is called in messages and tables: "model quantization"."""
    return f"{row['model']} {row['quantization']}"
