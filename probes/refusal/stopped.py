"""What ends a computation that was told to stop."""

from __future__ import annotations


class Stopped(Exception):
    """An engine was told to stop."""
