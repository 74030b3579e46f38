"""Defaults and bounds of the options of `probes.margin`; light, so that `--help` answers at once."""

from __future__ import annotations

from typing import Literal

Source = Literal["baseline", "lexicon"]
"""Whose openings: the baseline's own, or the lexicon's."""
SOURCES = {"baseline": "baseline's refusals", "lexicon": "lexicon"}
