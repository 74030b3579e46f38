"""Defaults and bounds of the options of `probes.geometry`; light, so that `--help` answers at once."""

from __future__ import annotations

COMPONENTS = 4
DRAWS = 500
FEWEST_DRAWS = 200
