"""Defaults and bounds of the options of `probes.why`; light, so that `--help` answers at once."""

from __future__ import annotations

SETS = 3
"""Random lists that are written."""
PROMPTS = 64
DRAWS = 20
SHARE = 0.5
"""The share of the shift that the list of linears to keep has to give back."""
