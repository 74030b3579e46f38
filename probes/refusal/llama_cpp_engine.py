"""llama.cpp as an engine: GGUF files as their users run them, fed the same token ids as the hooked model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, MissingExtra
from interp.generation import Answer
from probes.refusal.stopped import Stopped


class LlamaCppEngine:
    """A GGUF file in llama.cpp, in this process, on the CPU unless its build has another backend.

    Args:
        path: the .gguf file.
        threads: default: what llama.cpp takes.

    Raises:
        InputError: llama.cpp cannot load the file.
        MissingExtra: llama-cpp-python is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.path = path
        self._stopped = Event()
        self._llama = _open(path, n_ctx=0, n_threads=threads, n_threads_batch=threads)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        """Greedy answers, one prompt after the other, each from an empty cache."""
        return [self._answer(prompt, max_new_tokens) for prompt in prompts]

    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
        """Logits of the first generated token of each prompt, float32."""
        rows = []
        for prompt in prompts:
            self._read(prompt, 1)
            rows.append(torch.from_numpy(self._logits().copy()))
        return torch.stack(rows)

    def stop(self) -> None:
        """Before the next token."""
        self._stopped.set()

    def _answer(self, prompt: Sequence[int], max_new_tokens: int) -> Answer:
        import llama_cpp

        vocabulary = self._llama._model.vocab
        self._read(prompt, max_new_tokens)
        tokens: list[int] = []
        while True:
            token = int(np.argmax(self._logits()))
            if llama_cpp.llama_vocab_is_eog(vocabulary, token):
                return Answer(tokens, True)
            tokens.append(token)
            if len(tokens) == max_new_tokens:
                return Answer(tokens, False)
            self._eval([token])

    def _read(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        room = self._llama.n_ctx()
        if len(prompt) + max_new_tokens > room:
            raise InputError(
                f"A prompt of {len(prompt)} tokens and an answer of up to {max_new_tokens} do not fit into the {room} "
                f"tokens of {self.path}",
                do="Shorten the prompt or the answer; nothing is truncated",
            )
        self._llama.reset()
        self._eval(prompt)

    def _eval(self, tokens: Sequence[int]) -> None:
        """A batch of llama.cpp's at a time, which cannot be interrupted."""
        for start in range(0, len(tokens), self._llama.n_batch):
            if self._stopped.is_set():
                raise Stopped
            self._llama.eval(list(tokens[start : start + self._llama.n_batch]))

    def _logits(self) -> Float[np.ndarray, " vocab"]:
        import llama_cpp

        pointer = llama_cpp.llama_get_logits_ith(self._llama._ctx.ctx, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),))


def tokenize(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """The tokens that llama.cpp itself makes of rendered prompts, reading the vocabulary only; no BOS is added.

    Raises:
        InputError: llama.cpp cannot load the file.
        MissingExtra: llama-cpp-python is not installed.
    """
    llama_cpp = _package()
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    try:
        model = llama_cpp._internals.LlamaModel(path_model=str(path), params=settings, verbose=False)
    except ValueError as error:
        raise _unreadable(path, error) from error
    return [model.tokenize(text.encode(), False, True) for text in texts]


def _open(path: Path, **settings: Any) -> Any:
    try:
        return _package().Llama(str(path), verbose=False, **settings)
    except ValueError as error:
        raise _unreadable(path, error) from error


def _package() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingExtra("llama-cpp-python", "gguf", "Running GGUF files in llama.cpp") from error
    return llama_cpp


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"llama.cpp cannot load {path} ({error})",
        "a GGUF file of a model that llama.cpp knows",
        "Run it in the hooked model instead (--engine hooked)",
    )
