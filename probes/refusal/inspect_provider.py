"""Inspect's model provider `quantscope/PATH`: a checkpoint of any format, greedy, for any Inspect task.

Messages become text as in Inspect's own `hf` provider, which this one extends; loading, batching, decoding and the
record of what the model saw are ours. Model arguments: see `CheckpointAPI`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event, Lock
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.model._providers.hf import HuggingFaceAPI
from inspect_ai.model._providers.util import HFHandler
from inspect_ai.tool import ToolChoice, ToolInfo

from interp.chat import ChatTemplate, encode, render_messages, template_source
from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.generation import Answer
from interp.system_prompts import OWN
from interp.thinking import decode_answer, split_thinking
from probes.harness.server_replies import NotTheModelsWord
from probes.harness.transport import Patience, unscored
from probes.refusal.engine_process import EngineProcess
from probes.refusal.engines import Engine, EngineSettings
from probes.refusal.request_batcher import Batcher
from probes.refusal.request_sets import prompt_sha256
from probes.refusal.server_engine import Served, ServerEngine
from probes.refusal.settings import EngineName
from probes.refusal.stopped import Stopped

BATCH_SIZE = 32
MAX_NEW_TOKENS = 128
"""Where an answer is cut when neither the task nor the user says."""


class CheckpointAPI(HuggingFaceAPI):
    """A local checkpoint, run by the hooked model, llama.cpp or a server. Weights are loaded for the first request.

    Args:
        model_name: the checkpoint's path.
        base_url: unused.
        api_key: unused.
        config: Inspect's generation settings.
        engine: "hooked", "llama.cpp" or "vllm".
        like: the checkpoint whose tokenizer (and config, for a GGUF) is used.
        template: "auto", "none" or a Jinja file; see `interp.chat.render`.
        system: the system prompt of conversations that have none themselves: "auto" (the template's own), "none" or the
            text.
        thinking: whether templates are asked to let the model think.
        batch_size: prompts per forward pass.
        dtype: of the hooked model.
        device: of the hooked model.
        threads: on the CPU.
        data_parallel: of the engine vllm, copies of the checkpoint.
        tensor_parallel: of the engine vllm, GPUs per copy.
        gpu_memory: of the engine vllm, the share of each GPU's memory that it takes.

    Raises:
        InputError: no such checkpoint or template.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 (Inspect's signature)
        *,
        engine: str = "hooked",
        like: str | None = None,
        template: str = "auto",
        system: str = OWN,
        thinking: bool = False,
        batch_size: int = BATCH_SIZE,
        dtype: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        data_parallel: int = 1,
        tensor_parallel: int = 1,
        gpu_memory: float | None = None,
    ) -> None:
        # Not the parent's, which loads with AutoModelForCausalLM.
        ModelAPI.__init__(self, model_name, config=config)
        self.settings = EngineSettings(
            model_name, EngineName(engine), like, dtype, device, threads, data_parallel, tensor_parallel, gpu_memory
        )
        self.batch: int = batch_size
        self.thinking = thinking
        self.tokenizer = self.settings.surroundings().tokenizer
        self.chat_template = template_source(self.tokenizer, ChatTemplate(template, system))
        self.use_chat_template = self.chat_template is not None
        self._engine: Engine | None = None
        self._open: Callable[[], Engine] = self.settings.open
        self._server = ServerEngine(self.settings) if self.settings.engine is EngineName.VLLM else None
        self._loading = Lock()
        self._closed = Event()
        self._batcher = Batcher(self._answers, batch_size)

    def reached_at(self, address: str | None, patience: Patience) -> None:
        """Of the engine vllm: where a server runs already (None to start one), and how it is asked again."""
        if self._server is not None:
            self._server = ServerEngine(self.settings, address, patience)

    def compute_apart(self) -> None:
        """Of the hooked model: let a process of its own compute; see `probes.refusal.engine_process`."""
        if self.settings.engine is EngineName.HOOKED:
            self._open = partial(EngineProcess, self.settings)

    @property
    def engine(self) -> Engine:
        """The loaded model."""
        with self._loading:
            if self._engine is None:
                engine = self._open()
                if self._closed.is_set():  # meanwhile, by another thread
                    raise Stopped
                self._engine = engine
            return self._engine

    def identity(self) -> str:
        """What determines its answers, wherever the checkpoint lies: content, engine, dtype, template (with its system
        prompt)."""
        settings = self.settings
        like = None if settings.like is None else open_checkpoint(settings.like).fingerprint()
        template = None if self.chat_template is None else hashlib.sha256(self.chat_template.encode()).hexdigest()
        content = {"sha256": open_checkpoint(settings.path).fingerprint(), "like": like, "template": template}
        determined = content | {"dtype": settings.dtype, "engine": str(settings.engine), "thinking": self.thinking}
        return f"quantscope {json.dumps(determined)}"

    def _answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        return self.engine.generate(prompts, max_new_tokens)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """One greedy answer.

        Raises:
            InputError: settings that ask for something else; a prompt without tokens.
        """
        _check_greedy(config)
        text = self.rendered(input, tools)
        prompt = encode(self.tokenizer, [text])[0]
        if not prompt:
            raise InputError("A prompt is empty: it has no tokens", do="Leave it out")
        max_new_tokens = config.max_tokens or MAX_NEW_TOKENS
        try:
            answer = await self._answer(prompt, max_new_tokens)
        except NotTheModelsWord as word:
            output = unscored(self.model_name, str(word))
            output.metadata = {**(output.metadata or {}), **self._record(prompt, 0, config)}
            return output
        return self._output(text, prompt, answer, tools, config)

    async def _answer(self, prompt: list[int], max_new_tokens: int) -> Served:
        if self._server is not None:
            return await self._server.answer(prompt, max_new_tokens)
        answer = await self._batcher.submit(prompt, max_new_tokens)
        return Served(decode_answer(self.tokenizer, answer.tokens), len(answer.tokens), answer.finished)

    def rendered(self, messages: list[ChatMessage], tools: list[ToolInfo] | None = None) -> str:
        """The text that the model reads, before the tokenizer adds a BOS."""
        if self.chat_template is None:
            return "\n".join(message.text for message in messages)
        return self.hf_chat(messages, tools or [])

    def _apply_chat_template(
        self, hf_messages: list[ChatMessage], tools_list: list[dict[str, Any]], chat_template: str | None
    ) -> str:
        assert chat_template is not None
        messages = [message.model_dump(exclude_none=True) for message in hf_messages]
        return render_messages(self.tokenizer, messages, chat_template, self.thinking, tools_list or None)

    def _output(
        self, text: str, prompt: list[int], answer: Served, tools: list[ToolInfo], config: GenerateConfig
    ) -> ModelOutput:
        thinking, response = split_thinking(text, answer.text)
        response, stopped = _cut(response, config.stop_seqs or [])
        message = self._message(thinking, response, tools)
        n_tokens = answer.n_tokens
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=message, stop_reason="stop" if answer.finished or stopped else "max_tokens"
                )
            ],
            usage=ModelUsage(input_tokens=len(prompt), output_tokens=n_tokens, total_tokens=len(prompt) + n_tokens),
            metadata=self._record(prompt, n_tokens, config),
        )

    def _message(self, thinking: str, response: str, tools: list[ToolInfo]) -> ChatMessageAssistant:
        if tools:
            return HFHandler(self.model_name, self.model_family()).parse_assistant_response(response, tools)
        if not thinking:
            return ChatMessageAssistant(content=response, model=self.model_name, source="generate")
        parts: list[Content] = [ContentReasoning(reasoning=thinking), ContentText(text=response)]
        return ChatMessageAssistant(content=parts, model=self.model_name, source="generate")

    def _record(self, prompt: list[int], n_tokens: int, config: GenerateConfig) -> dict[str, Any]:
        """What determined the answer."""
        return {
            "prompt_token_ids": prompt,
            "prompt_sha256": prompt_sha256(prompt),
            "n_tokens": n_tokens,
            "engine": str(self.settings.engine) if self._server is None else self._server.software,
            "greedy": True,
            "max_new_tokens": config.max_tokens or MAX_NEW_TOKENS,
            "batch_size": self.batch,
            "thinking": self.thinking,
        }

    def max_connections(self) -> int:
        """Several batches at once, so that one is waiting, sorted by length, while another is computed."""
        return 4 * self.batch

    def max_tokens(self) -> int:
        """Where an answer is cut by default."""
        return MAX_NEW_TOKENS

    def close(self) -> None:
        """Stop what is computed and free the model."""
        self._closed.set()
        self._batcher.close()
        for engine in (self._engine, self._server):
            if engine is not None:
                engine.stop()
        self._engine = None


def _check_greedy(config: GenerateConfig) -> None:
    asked = {
        "temperature": config.temperature or None,
        "logprobs": config.logprobs or None,
        "frequency_penalty": config.frequency_penalty or None,
        "presence_penalty": config.presence_penalty or None,
        "logit_bias": config.logit_bias or None,
        "best_of": config.best_of if config.best_of != 1 else None,
        "num_choices": config.num_choices if config.num_choices != 1 else None,
    }
    unsupported = {name: value for name, value in asked.items() if value is not None}
    if unsupported:
        raise InputError(
            f"A checkpoint cannot be run with {', '.join(f'{name}={value}' for name, value in unsupported.items())}",
            "greedy decoding (temperature 0) without penalties or biases, one answer",
        )


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop sequence, and whether there was one."""
    end = min((text.find(stop) for stop in stops if stop in text), default=None)
    return (text, False) if end is None else (text[:end], True)
