"""Tests, and what they share."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("QUANTSCOPE_SHARED", Path(__file__).parents[2] / "shared"))
"""Reference material beside the project: real prompts, completions and quantizers' files. It need not be there."""
