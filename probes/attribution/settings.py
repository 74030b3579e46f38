"""Defaults and bounds of the options of `probes.attribution`; light, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum

UNITS = 200
"""Rows per cell, side, category and level of neurons and groups."""


class Objectives(StrEnum):
    """What is attributed."""

    MARGIN = "margin"


STEPS = 8
MAX_STEPS = 32


class PartKind(StrEnum):
    """What a part is; the levels of an attribution."""

    LAYER = "layer"
    MODULE = "module"
    HEAD = "head"
    NEURON = "neuron"
    OTHER = "other"
