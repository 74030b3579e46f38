"""Defaults and bounds of the options of `probes.judges`; light, so that `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass

from probes.harness import transport

SAMPLE = 25
"""Responses of a cell that the second judge reads, where it does not read all."""


@dataclass(frozen=True)
class Patience(transport.Patience):
    """How a judge is asked.

    Attributes:
        timeout: seconds for one answer.
        connections: questions at once.
        max_tokens: of the judge's answer.
    """

    timeout: int | float = 120
    connections: int = 8
    max_tokens: int = 512
