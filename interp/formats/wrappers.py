"""Models that also see images: a config.json around that of a language model, whose tensors have a prefix.

The language model alone is opened: text goes in, and nothing of what reads images takes part.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from interp.errors import InputError

TEXT_PARTS = {
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "gemma4": "gemma4_text",
}
"""`model_type` of what also sees → that of its language model, where its own config does not say it."""
PREFIXES = ("language_model.model.", "model.language_model.")
"""What stands before a tensor's name instead of `model.`, by older and newer writers."""
OTHER_PARTS = ("vision_tower", "multi_modal_projector", "visual", "embed_vision", "audio_tower", "embed_audio")
"""The parts that read images, or hear."""
FURTHER_TOKENS = "mtp."
"""What stands before the names of a part that guesses further tokens for an engine to check (Qwen)."""


def text_settings(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of the language model: its `text_config`, or all of it where there is no wrapper.

    Raises:
        InputError: a wrapper without a text config, or with one whose `model_type` is no name.
    """
    known = TEXT_PARTS.get(settings["model_type"])
    if known is None:
        return settings
    text = settings.get("text_config")
    if not isinstance(text, dict):
        raise InputError(
            f"{directory / 'config.json'} describes a {settings['model_type']} model with the text_config {text!r}",
            "an object that describes its language model",
            "Restore the config the model was saved with",
        )
    outer = {key: settings[key] for key in ("tie_word_embeddings", "dtype", "torch_dtype") if key in settings}
    named = text.get("model_type", known)
    if not isinstance(named, str):
        raise InputError(
            f"{directory / 'config.json'} describes a language model with the model_type {str(named)[:80]}",
            "the name of an architecture",
            "Restore the config the model was saved with",
        )
    return {"model_type": known} | outer | text


def with_ties(settings: dict[str, Any], stored: Collection[str]) -> dict[str, Any]:
    """The settings of a wrapper's language model, embeddings tied where nothing else is said or stored."""
    tied = not any(name.endswith("lm_head.weight") for name in stored)
    return {"tie_word_embeddings": tied} | settings


def names_within(name: str) -> tuple[str, ...]:
    """What a wrapper's files may call a tensor of the language model."""
    inner = name.removeprefix("model.")
    return (f"language_model.{name}",) if inner == name else tuple(prefix + inner for prefix in PREFIXES)


def warnings_of_unused(directory: Path, names: Collection[str], wrapped: bool) -> list[str]:
    """What is said of the tensors of a checkpoint that the language model does not take.

    Args:
        directory: of the checkpoint.
        names: of these tensors.
        wrapped: its config.json is a wrapper's.
    """
    seeing = [name for name in names if wrapped and _other_part(name) is not None]
    further = [name for name in names if name.startswith(FURTHER_TOKENS)]
    rest = [name for name in names if name not in {*seeing, *further}]
    warnings = [_left_out(directory, seeing)] if seeing else []
    if further:
        warnings.append(
            f"{len(further)} tensors of {directory} ({FURTHER_TOKENS}*) guess further tokens, which changes no answer: "
            "they are left out"
        )
    if rest:
        warnings.append(f"{len(rest)} tensors of {directory} belong to no part of the model: {rest[:5]}")
    return warnings


def _other_part(name: str) -> str | None:
    """The part that reads images that a tensor belongs to, if any."""
    inner = name.removeprefix("model.")
    return next((part for part in OTHER_PARTS if inner.startswith(f"{part}.")), None)


def _left_out(directory: Path, names: Collection[str]) -> str:
    parts = dict.fromkeys(_other_part(name) for name in names)
    listed = ", ".join(part for part in OTHER_PARTS if part in parts)
    return (
        f"{directory} also sees images: {len(names)} tensors ({listed}) are left out, and what is measured is its "
        "language model on text"
    )
