"""Defaults and bounds of the options of `probes.matrix`; light, so that `--help` answers at once."""

from __future__ import annotations

import pandas as pd


def _cell(row: pd.Series) -> str:
    return f"{row['model']} {row['quantization']}"
