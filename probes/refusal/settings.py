"""Defaults and bounds of the options of `probes.refusal`; light, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum


class EngineName(StrEnum):
    """The engines that run a checkpoint in this process."""

    HOOKED = "hooked"
    LLAMA_CPP = "llama.cpp"


TASKS = ("refusal", "over_refusal", "jailbreak", "truthfulness", "bias")
DEFAULT_TASKS = ("refusal", "over_refusal")
MAX_NEW_TOKENS = 128
BATCH_SIZE = 32
