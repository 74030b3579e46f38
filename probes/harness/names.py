"""What a cell can be called, on the command line and in a study file: its name is a folder's and a table's key."""

from __future__ import annotations

import re
from pathlib import Path

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}$"
"""What models and cells can be called."""
EXPECTED = "1 to 100 letters, digits and _ . + = -, the first a letter or a digit"
BASELINE = "baseline"
"""What the unquantized model is called among the cells."""
REPEAT = "baseline-again"
"""What the baseline asked again is called; its conditions follow."""
CONTROL = "control"
"""What the baseline on the cells' engine is called."""
RESERVED = {
    BASELINE: "the baseline's name",
    REPEAT: "what the baseline asked again is called",
    CONTROL: "what the baseline on another engine is called",
}
"""Names that a table of cells gives to something else, in any case: folders need not tell cases apart."""


def name_problem(name: str) -> str:
    """Why a cell cannot have this name; "" where it can."""
    lower = name.lower()
    for reserved, meaning in RESERVED.items():
        if lower == reserved or (reserved == REPEAT and lower.startswith(f"{REPEAT}-")):
            return f"{name!r} is {meaning}; give the cell another name"
    return "" if re.fullmatch(NAME, name) else f"{name!r} cannot be a name: expected {EXPECTED}"


def is_url(path: str) -> bool:
    """Whether it is a server's address."""
    return path.startswith(("http://", "https://"))


def derived_name(path: str) -> str:
    """What a cell is called that was given no name: its path's last part without .gguf, or a server's model."""
    _, _, model = path.partition("#")
    return Path(model if model and is_url(path) else path).name.removesuffix(".gguf")
