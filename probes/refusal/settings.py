"""Defaults and bounds of the options of `probes.refusal`; light, so that `--help` answers at once."""

from __future__ import annotations

from enum import StrEnum


class EngineName(StrEnum):
    """The engines that run a checkpoint: two in this process, and a server."""

    HOOKED = "hooked"
    LLAMA_CPP = "llama.cpp"
    VLLM = "vllm"


TASKS = ("refusal", "over_refusal", "jailbreak", "truthfulness", "bias")
DEFAULT_TASKS = ("refusal", "over_refusal")
MAX_NEW_TOKENS = 128
BATCH_SIZE = 32
OF_SERVERS = {"data_parallel": 1, "tensor_parallel": 1, "gpu_memory": None}
"""What only vLLM is told, with defaults: copies of a checkpoint, GPUs per copy, and the share of a GPU's memory."""


def served_as(address: str) -> str:
    """Which of a server's models an address means, `http://HOST:PORT/v1#NAME`; "" where it does not say."""
    return address.partition("#")[2]
