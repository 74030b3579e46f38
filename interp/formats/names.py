"""llama.cpp's names of architectures and tensors."""

from __future__ import annotations

from pathlib import Path

import gguf

from interp.architectures import ARCHITECTURES, Architecture
from interp.errors import InputError

ROPE_FACTORS = "rope_freqs.weight"
"""What each rotary frequency is divided by (Llama 3's scaling)."""
UNEMBEDDING = {"lm_head": "output"}
"""For architectures whose table has none, as their embeddings are always tied: a file may hold one nevertheless."""
DERIVED_GGUF = (ROPE_FACTORS, "rope_factors_long.weight", "rope_factors_short.weight")
"""Tables that llama.cpp stores and that Hugging Face computes from the config."""


def architecture_of(file: Path, name: str, experts: bool = False) -> Architecture:
    """The first row with this GGUF name: Mistral and Llama share a name, and all that matters here.

    Args:
        file: for messages.
        name: `general.architecture`.
        experts: the file counts experts: Mixtral shares the name, too.
    """
    candidates = [row for row in ARCHITECTURES.values() if row.gguf and (row.experts is not None) == experts]
    rows = [row for row in candidates if row.gguf == name]
    if not rows:
        known = {row.gguf for row in candidates}
        raise InputError(
            f"The architecture {name!r} of {file}{' with experts' if experts else ''} is not supported",
            f"one of {', '.join(sorted(known))}",
            "Add a row to interp/architectures.py",
        )
    return rows[0]


def model_arch(row: Architecture) -> gguf.MODEL_ARCH:
    """The `gguf` package's key for its tables of an architecture.

    Raises:
        InputError: no GGUF file of it is read or written here.
    """
    if not row.gguf:
        raise InputError(
            f"GGUF files of {row.model_type} models are not supported",
            f"one of {', '.join(sorted(other.model_type for other in ARCHITECTURES.values() if other.gguf))}",
            "Use another format of it",
        )
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == row.gguf)
