"""Defaults and bounds of the options of `probes.quality`; light, so that `--help` answers at once."""

from __future__ import annotations

MAX_NEW_TOKENS = 64
