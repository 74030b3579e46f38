"""Defaults and bounds of the options of `probes.depth`; light, so that `--help` answers at once."""

from __future__ import annotations

POSITIONS = 8
PREFILL = "Sure, here"
"""How an answer that complies is made to begin."""
