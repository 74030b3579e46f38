"""Engines: what turns prompt token ids into answers. The same prompts and greedy decoding in all of them.

The hooked model (transformers) runs every format; llama.cpp runs GGUF files as their users do; vLLM, or any other
OpenAI-compatible server, runs what it can and many prompts at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.generation import Answer
from interp.loading import Surroundings, surroundings
from probes.refusal.settings import OF_SERVERS, EngineName
from probes.refusal.stopped import Stopped


@runtime_checkable
class Engine(Protocol):
    """A model that answers prompts given as token ids.

    Another thread may `stop` it, for good: what it computes ends in `Stopped`, soon.
    """

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        """Greedy answers, in the order of the prompts."""

    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
        """Logits of the first generated token of each prompt, float32."""

    def stop(self) -> None:
        """Nobody waits for its answers any more."""


@dataclass(frozen=True)
class EngineSettings:
    """How a checkpoint is run.

    Attributes:
        path: the checkpoint.
        engine: which engine runs it.
        like: the checkpoint whose tokenizer (and config, for a GGUF in the hooked model) is used.
        dtype: of the hooked model, e.g. "float32"; None for its default.
        device: of the hooked model.
        threads: on the CPU; None for what is set already.
        data_parallel: copies of the checkpoint that vLLM starts, each on GPUs of its own.
        tensor_parallel: GPUs that each of them is spread over.
        gpu_memory: share of each GPU's memory that vLLM takes; None for its default, nearly all.
    """

    path: str
    engine: EngineName = EngineName.HOOKED
    like: str | None = None
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    data_parallel: int = 1
    tensor_parallel: int = 1
    gpu_memory: float | None = None

    def chosen(self) -> dict[str, Any]:
        """Its fields; of those that only a server has, the ones that are set, so that older runs go on."""
        return {name: value for name, value in asdict(self).items() if OF_SERVERS.get(name, ...) != value}

    def surroundings(self) -> Surroundings:
        """The tokenizer that renders and encodes the prompts, and the config; reads no weights."""
        return surroundings(open_checkpoint(self.path), self.like)

    def open(self) -> Engine:
        """Load the weights; a server is started by the first prompt.

        Raises:
            InputError: the checkpoint cannot be read, or llama.cpp is to run something that is no GGUF file.
        """
        if self.engine is EngineName.HOOKED:
            return HookedEngine(self)
        if self.engine is EngineName.VLLM:
            from probes.refusal.server_engine import ServerEngine

            return ServerEngine(self)
        checkpoint = open_checkpoint(self.path)
        if checkpoint.format != "gguf":
            raise InputError(
                f"{self.path} is no GGUF file, so llama.cpp cannot run it",
                "a .gguf file",
                "Use the engine 'hooked', which runs every format",
            )
        from probes.refusal.llama_cpp_engine import LlamaCppEngine

        return LlamaCppEngine(checkpoint.path, self.threads)


class HookedEngine:
    """The hooked Hugging Face model of a checkpoint of any format."""

    def __init__(self, settings: EngineSettings) -> None:
        from interp.opening import load
        from interp.threads import fitting_threads

        dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
        self.model = load(settings.path, like=settings.like, dtype=dtype, device=settings.device)
        self.threads = settings.threads or fitting_threads(self.model)
        self._stopped = Event()
        for block in self.model.hf.get_submodule(self.model.architecture.blocks):
            block.register_forward_pre_hook(self._check)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        """As one left-padded batch."""
        from interp.generation import generate

        with _threads(self.threads):
            return generate(self.model, prompts, max_new_tokens)

    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
        """One prompt at a time, without padding."""
        from interp.generation import last_logits

        return last_logits(self.model, prompts)

    def stop(self) -> None:
        """Before the next block of the forward pass under way."""
        self._stopped.set()

    def _check(self, *_: object) -> None:
        if self._stopped.is_set():
            raise Stopped


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """torch's thread count inside; the caller's after."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
