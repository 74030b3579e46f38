"""Defaults and bounds of the options of `probes.reversion`; light, so that `--help` answers at once."""

from __future__ import annotations

DRAWS = 39
"""Errors with random signs; 19 are the fewest that can give a p of 0.05."""
