"""Defaults and bounds of the options of `probes.neurons`; light, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum

DRAWS = FEWEST_DRAWS = 1000
MOST_DRAWS = 10_000
"""Memory grows with the draws: 17 bytes for each unit of a layer, 2.4 GB for 14,336 neurons."""
SIGNIFICANT = 0.05


class Site(StrEnum):
    """A kind of unit."""

    RESID = "resid"
    MLP = "mlp"
    HEAD = "head"
