"""vLLM, or any other OpenAI-compatible server, as an engine: the token ids of the other engines, to `/v1/completions`.

The server neither renders nor tokenizes anything, so all engines read the same prompts; how many tokens it read, and
which, where it says so, is compared with each answer. A server of our own is started for the first prompt; one that
runs already is taken at its address.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.to_thread
from jaxtyping import Float
from torch import Tensor

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.generation import Answer
from interp.redaction import redact
from interp.thinking import decode_answer
from probes.harness.server_replies import NotTheModelsWord, TextCompletion
from probes.harness.transport import GaveUp, Patience, complete_tokens, patiently
from probes.refusal import server_process
from probes.refusal.server_models import key_from_environment, list_models, model_at, software
from probes.refusal.server_process import SERVED_AS, ServerProcess
from probes.refusal.stopped import Stopped

if TYPE_CHECKING:
    from probes.refusal.engines import EngineSettings


class Served(NamedTuple):
    """An answer as text.

    Attributes:
        text: without special tokens, but with those that mark thoughts where the server says which tokens there are.
        n_tokens: how many, the token that ended it not counted.
        finished: whether the model ended it; else it was cut at the limit.
    """

    text: str
    n_tokens: int
    finished: bool


class _Place(NamedTuple):
    """Where a model is served, and by what."""

    url: str
    name: str
    key: str
    software: str


class ServerEngine:
    """A checkpoint behind an OpenAI-compatible server, which takes many prompts at a time.

    Args:
        settings: the checkpoint, and how vLLM spreads it.
        address: of a server that runs it already, `URL` or `URL#NAME`; None to start vLLM.
        patience: with each answer.
    """

    def __init__(self, settings: EngineSettings, address: str | None = None, patience: Patience | None = None) -> None:
        self.settings, self.address, self.patience = settings, address, patience or Patience()
        self._stopped, self._starting = Event(), Lock()
        self._process: ServerProcess | None = None
        self._found: _Place | InputError | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """Of the checkpoint."""
        return self.settings.surroundings().tokenizer

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer, as for the hooked model: vLLM itself would know the tokenizer's only."""
        config = self.settings.surroundings().generation_config
        declared = None if config is None else config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
        return sorted(int(end) for end in ends)

    @property
    def software(self) -> str:
        """The program and version of the server that answers; "" before it does."""
        return self._found.software if isinstance(self._found, _Place) else ""

    async def answer(self, prompt: Sequence[int], max_new_tokens: int) -> Served:
        """The greedy answer to one prompt; may be called many times at once.

        Raises:
            InputError: there is no server, it keeps failing, or it read another prompt.
            NotTheModelsWord: what came is the server's own word.
            Stopped: the engine was stopped.
        """
        place = await anyio.to_thread.run_sync(self._place, abandon_on_cancel=True)
        request = {
            "model": place.name,
            "prompt": list(prompt),
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            "seed": 0,
            "extra_body": {
                "repetition_penalty": 1.0,
                "stop_token_ids": self.ends,
                "return_token_ids": True,
                "cache_prompt": False,  # llama.cpp would go on from another prompt's cache, in other batches
            },
        }
        patience = self.patience
        try:
            completion = await patiently(
                lambda: complete_tokens(place.url, place.key, request, patience.timeout), patience
            )
        except GaveUp as gave_up:
            if self._stopped.is_set():
                raise Stopped from None
            ended = None if self._process is None else self._process.ended()
            raise ended or InputError(f"The server at {redact(place.url)} failed: {gave_up}") from None
        _check_read(completion, prompt, place.url)
        return self._served(completion)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        """Greedy answers as token ids; those that a server does not tell are what the tokenizer makes of the text.

        Raises:
            InputError: as `answer`, and where an answer is not the model's.
        """
        found: dict[int, Served] = {}

        async def ask(index: int, prompt: Sequence[int]) -> None:
            try:
                found[index] = await self.answer(prompt, max_new_tokens)
            except NotTheModelsWord as word:
                raise InputError(f"The server gave no answer of the model: {word}") from None

        async def ask_all() -> None:
            async with anyio.create_task_group() as group:
                for index, prompt in enumerate(prompts):
                    group.start_soon(ask, index, prompt)

        try:
            anyio.run(ask_all)
        except* (InputError, Stopped) as errors:
            raise errors.exceptions[0] from None
        encode = self.tokenizer.encode
        return [
            Answer(encode(found[index].text, add_special_tokens=False), found[index].finished)
            for index in range(len(prompts))
        ]

    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
        """No server gives them.

        Raises:
            InputError: always.
        """
        raise InputError("A server does not give its logits", "an engine in this process", "Take another engine")

    def stop(self) -> None:
        """At once: a server of our own ends, and requests under way fail."""
        self._stopped.set()
        with self._starting:
            if self._process is not None:
                self._process.stop()
                self._process = None

    def _place(self) -> _Place:
        """Where it is served; started by whoever asks first."""
        with self._starting:
            if self._stopped.is_set():
                raise Stopped
            if self._found is None:
                try:
                    self._found = self._start() if self.address is None else _taken(self.address)
                except InputError as error:
                    self._found = error
            if isinstance(self._found, InputError):
                raise self._found
            return self._found

    def _start(self) -> _Place:
        settings = self.settings
        path = str(open_checkpoint(settings.path).path)
        options = ["--generation-config", "vllm", "--no-enable-prefix-caching"]
        options += [] if settings.dtype is None else ["--dtype", settings.dtype]
        options += ["--data-parallel-size", str(settings.data_parallel)] if settings.data_parallel > 1 else []
        options += ["--tensor-parallel-size", str(settings.tensor_parallel)] if settings.tensor_parallel > 1 else []
        options += [] if settings.gpu_memory is None else ["--gpu-memory-utilization", str(settings.gpu_memory)]
        if path.endswith(".gguf") and settings.like is not None:
            options += ["--tokenizer", str(open_checkpoint(settings.like).path)]
        self._process = ServerProcess(path, options)
        try:
            self._process.wait(self._stopped)
        except BaseException:
            self._process.stop()
            self._process = None
            raise
        return _place(self._process.url, SERVED_AS, self._process.key)

    def _served(self, completion: TextCompletion) -> Served:
        if completion.tokens is not None:
            ends = set(self.ends)
            tokens = (
                completion.tokens[:-1]
                if completion.tokens[-1:] and completion.tokens[-1] in ends
                else completion.tokens
            )
            return Served(decode_answer(self.tokenizer, tokens), len(tokens), completion.finished)
        n_tokens = completion.n_tokens
        if n_tokens is None:
            n_tokens = len(self.tokenizer.encode(completion.text, add_special_tokens=False))
        return Served(completion.text, n_tokens, completion.finished)


def served_by(address: str | None) -> str:
    """The program and version of a server, or of the vLLM that would be started where there is no address.

    Raises:
        InputError: nothing answers there; there is no vLLM.
    """
    if address is None:
        return f"vllm {server_process.version(server_process.program())}"
    return _taken(address).software


def _taken(address: str) -> _Place:
    url, name, _ = model_at(address)
    return _place(url, name, key_from_environment())


def _place(url: str, name: str, key: str) -> _Place:
    return _Place(url, name, key, software(url, list_models(url, key)[name]["owned_by"], key))


def _check_read(completion: TextCompletion, prompt: Sequence[int], url: str) -> None:
    """The server read the tokens that it was sent.

    Raises:
        InputError: it read others.
    """
    other = completion.prompt_tokens is not None and completion.prompt_tokens != list(prompt)
    if other or completion.n_prompt_tokens not in (None, len(prompt)):
        raise InputError(
            f"The server at {redact(url)} read {completion.n_prompt_tokens} tokens, or others, of a prompt of "
            f"{len(prompt)}",
            "a server whose /v1/completions takes token ids as they are, as vLLM's and llama.cpp's do",
            "Take another server; otherwise its answers are to other prompts than the other cells'",
        )
