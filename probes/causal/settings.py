"""Defaults and bounds of the options of `probes.causal`; light, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum

from probes.attribution.settings import PartKind

PROMPTS = 64
"""Prompts of each side that interventions are measured on."""


class Experiment(StrEnum):
    """What to do."""

    RESTORE = "restore"
    DAMAGE = "damage"
    RESCUE = "rescue"
    WHERE = "where"
    ALL = "all"


class By(StrEnum):
    """What is exchanged."""

    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


DRAWS = 20
KINDS = (PartKind.NEURON, PartKind.HEAD, PartKind.MODULE, PartKind.LAYER)
