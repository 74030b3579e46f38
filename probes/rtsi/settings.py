"""Defaults and bounds of the options of `probes.rtsi`; light, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path

PUBLISHED = Path(__file__).with_name("data") / "rtsi_published.json"


RATE_DELTA = "refusal_rate_delta"
