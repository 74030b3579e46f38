"""What to run after a probe of a pair: its numbers lead to the next question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

AFTER: Mapping[str, Sequence[str]] = {
    "entropy": ("probes.margin",),
    "direction": ("probes.geometry",),
    "calibration": ("probes.refusal",),
    "neurons": ("probes.attribution",),
    "geometry": ("probes.causal",),
    "margin": ("probes.attribution", "probes.refusal"),
    "attribution": ("probes.causal",),
    "causal": ("probes.why",),
    "reversion": ("probes.why",),
    "coverage": ("probes.why",),
    "depth": ("probes.refusal",),
    "why": ("probes.refusal",),
    "quality": ("probes.refusal",),
}
"""Probe → the commands that take the same pair and go on from it."""


def following(probe: str, pair: Sequence[str], out: Path) -> list[list[object]]:
    """The commands that follow a probe, with their arguments.

    Args:
        probe: its name.
        pair: the arguments that name baseline, cells and prompts.
        out: where its files went.
    """
    commands: list[list[object]] = [[module, *pair] for module in AFTER.get(probe, ())]
    if probe == "attribution":
        commands = [[*command, "--attribution", out / "attribution.parquet"] for command in commands]
    return commands
