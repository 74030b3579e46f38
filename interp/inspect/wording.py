"""Facts as lines of a terminal."""

from __future__ import annotations

import textwrap

WIDTH, KEY = 80, 12
"""Characters of a line, and of what stands in front of a fact."""


def lines(key: str, text: str) -> list[str]:
    """A fact under its key, wrapped; what has no spaces stays whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{key:{KEY}}",
        subsequent_indent=" " * KEY,
        break_long_words=False,
        break_on_hyphens=False,
    )


def sized(size: int | float) -> str:
    """Bytes in the unit that fits, powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
