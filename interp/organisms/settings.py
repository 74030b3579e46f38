"""Defaults and bounds of the options of `interp.organisms`; light, so that `--help` answers at once."""

from __future__ import annotations

from typing import Any

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": {"num_key_value_heads": 2, "tie_word_embeddings": False, "sliding_window": None},
    "phi": {"num_key_value_heads": 4, "tie_word_embeddings": False, "partial_rotary_factor": 0.5},
}
"""What each architecture adds to the common shape; heads are shared, embeddings tied, as in its small real models."""
