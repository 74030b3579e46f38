"""Greedy generation from token ids, batched: what every completion of a hooked model is made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.batching import PAD, batches
from interp.cache import ActivationCache, Rows
from interp.chat import as_texts, render
from interp.hooks import Names
from interp.passes import LOGITS, Pass
from interp.running import Hook, Rowing, installed
from interp.thinking import decode_answer, split_thinking

if TYPE_CHECKING:
    from interp.model import HookedModel


MAX_NEW_TOKENS = 48
BATCH_SIZE = 32


class Answer(NamedTuple):
    """What a model generated.

    Attributes:
        tokens: without the token that ended it.
        finished: whether the model ended it; else it was cut at the limit.
    """

    tokens: list[int]
    finished: bool


def generate(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    computing: Callable[[list[int]], object] | None = None,
    computed: Callable[[list[int]], object] | None = None,
) -> list[Answer]:
    """The most probable continuation of each prompt, token by token, all prompts in one batch.

    What the checkpoint's generation_config.json says about sampling is ignored; its end-of-sequence tokens are kept.

    Args:
        model: hooks that are open act on every step.
        prompts: token ids, none empty.
        max_new_tokens: where an answer is cut; the end of the model's context cuts it, too.
        computing: told before each forward pass which prompts its rows are, for hooks that treat them differently.
        computed: told the same after each forward pass; then also the last token that was generated is computed.

    Raises:
        InputError: a token that the model has no embedding for.
    """
    model.require_known(prompts)
    ends = end_tokens(model)
    answers = [Answer([], False)] * len(prompts)
    n_steps = max_new_tokens if computed is None else max_new_tokens + 1
    for step, (rows, tokens) in enumerate(_steps(model, prompts, n_steps, ends, computing)):
        if computed is not None:
            computed(rows)
        if step == max_new_tokens:
            break
        for row, token in zip(rows, tokens, strict=True):
            so_far = answers[row].tokens
            answers[row] = Answer(so_far, True) if token in ends else Answer([*so_far, token], False)
    return answers


def end_tokens(model: HookedModel) -> set[int]:
    """The tokens that end an answer, as the tokenizer and the generation config declare them."""
    declared = model.hf.generation_config.eos_token_id
    return {model.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}


def first_tokens(model: HookedModel, prompts: Sequence[Sequence[int]]) -> list[int]:
    """The most probable token after each prompt, in passes as `HookedModel.logits` makes them."""
    tokens = torch.empty(len(prompts), dtype=torch.long)
    read = list(batches(prompts, -1, None, model.device))
    computed = model.run(Pass(batch.inputs, batch.positions[:, None], logits=True) for batch in read)
    for batch, kept in zip(read, computed, strict=True):
        tokens[batch.indices] = kept[LOGITS][:, 0].argmax(-1).cpu()
    return tokens.tolist()


def last_logits(model: HookedModel, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "prompt vocab"]:
    """Logits of the first generated token of each prompt, float32 on the CPU, one prompt at a time."""
    with torch.no_grad():
        rows = [
            model.hf(torch.tensor([list(ids)], device=model.device), use_cache=False, logits_to_keep=1).logits[0, -1]
            for ids in prompts
        ]
    return torch.stack(rows).float().cpu()


@torch.inference_mode()
def _steps(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: set[int],
    computing: Callable[[list[int]], object] | None = None,
) -> Iterator[tuple[list[int], list[int]]]:
    """At each step, which prompts are still being answered and the next token of each.

    transformers' own `generate` computes every row until the longest answer is done; here a row leaves with its answer.
    """
    from transformers import DynamicCache

    step, mask = _left_padded(prompts, model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows = list(range(len(prompts)))
    last = torch.tensor([-1])  # a number would let Gemma 4's last blocks, and hooks in them, see the last token alone
    context = getattr(model.hf.config, "max_position_embeddings", None) or inf
    for step_number in range(max_new_tokens):
        if computing is not None:
            computing(rows)
        output = model.hf(
            step,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        )
        tokens = output.logits[:, -1].argmax(dim=-1)
        next_tokens = tokens.tolist()
        yield rows, next_tokens
        staying = [
            place
            for place, (row, token) in enumerate(zip(rows, next_tokens, strict=True))
            if token not in ends and len(prompts[row]) + step_number < context
        ]
        if not staying:
            return
        if len(staying) < len(rows):
            places: Any = torch.tensor(staying, device=mask.device)
            rows, tokens, mask = [rows[place] for place in staying], tokens[places], mask[places]
            cache.reorder_cache(places)  # a recurrence's state has rows, too
        step, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = mask.sum(dim=1, keepdim=True) - 1


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Token ids and attention mask; pads go to the left, so that all answers start at the same column."""
    width = max(map(len, prompts))
    ids = [[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class Completion(NamedTuple):
    """What a model answered.

    Attributes:
        text: the answer without special tokens and without what the model thought first.
        n_tokens: tokens of both, the end-of-sequence token not counted.
        finished: whether the model ended it; else it was cut at the limit.
        thinking: what it thought; "" for nothing.

    Example:
        >>> [completion] = complete(model, ["How are you?"], max_new_tokens=8)
        >>> completion.text, completion.n_tokens, completion.finished
    """

    text: str
    n_tokens: int
    finished: bool
    thinking: str = ""


def complete(
    model: HookedModel,
    texts: str | Sequence[str],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    computing: Callable[[list[int]], object] | None = None,
) -> list[Completion]:
    """The most probable continuation token by token (no sampling, no penalties), in the order of the texts.

    What the checkpoint's generation_config.json says about sampling is ignored; its end-of-sequence tokens are kept.

    Args:
        model: hooks that are open act on every step.
        texts: rendered prompts, or a single one.
        max_new_tokens: where an answer is cut.
        batch_size: prompts generated together, those of similar length.
        computing: told before each forward pass which texts its rows are, for hooks that treat them differently.

    Raises:
        InputError: a prompt that is empty or longer than the context.

    Example:
        >>> [completion] = complete(model, ["How are you?"], max_new_tokens=8)
        >>> completion.text, completion.n_tokens, completion.finished
    """
    texts = as_texts(texts)
    responses = answers(model, texts, max_new_tokens, batch_size, computing)
    return [completion_of(model.tokenizer, text, answer) for text, answer in zip(texts, responses, strict=True)]


def answers(
    model: HookedModel,
    texts: str | Sequence[str],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    computing: Callable[[list[int]], object] | None = None,
    computed: Callable[[list[int]], object] | None = None,
) -> list[Answer]:
    """`complete`, as token ids."""
    texts = as_texts(texts)
    token_ids = model.token_ids(texts)
    if model.streamed is not None and max_new_tokens == 1 and computing is None and computed is None:
        ends = end_tokens(model)
        return [Answer([], True) if one in ends else Answer([one], False) for one in first_tokens(model, token_ids)]
    order = sorted(range(len(texts)), key=lambda index: len(token_ids[index]))
    answer_of: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        told = (None if tell is None else _renamed(tell, indices) for tell in (computing, computed))
        batch_answers = generate(model, [token_ids[index] for index in indices], max_new_tokens, *told)
        answer_of |= dict(zip(indices, batch_answers, strict=True))
    return [answer_of[index] for index in range(len(texts))]


def _renamed(computing: Callable[[list[int]], object], indices: list[int]) -> Callable[[list[int]], object]:
    """Told rows of a batch, tells which texts they are."""
    return lambda rows: computing([indices[row] for row in rows])


def completion_of(tokenizer: Any, prompt: str, answer: Answer) -> Completion:
    """An answer as text.

    Args:
        tokenizer: of the model.
        prompt: rendered, as the model read it.
        answer: token ids.
    """
    thought = split_thinking(prompt, decode_answer(tokenizer, answer.tokens))
    return Completion(thought.answer.strip(), len(answer.tokens), answer.finished, thought.thinking)


def generate_with_hooks(
    model: HookedModel,
    texts: str | Sequence[str],
    max_new_tokens: int,
    hooks: Sequence[Hook],
    chat: bool,
    batch_size: int,
) -> list[Completion]:
    """See `HookedModel.generate`."""
    texts = render(model.tokenizer, texts, "chat" if chat else "none").texts
    rowing = Rowing(list(map(len, model.token_ids(texts))))
    with installed(model, hooks, rowing):
        return complete(model, texts, max_new_tokens, batch_size, rowing.tell)


def generate_with_cache(
    model: HookedModel,
    texts: str | Sequence[str],
    names: Names,
    max_new_tokens: int,
    hooks: Sequence[Hook],
    chat: bool,
    batch_size: int,
) -> tuple[list[Completion], ActivationCache]:
    """See `HookedModel.generate_with_cache`."""
    texts = render(model.tokenizer, texts, "chat" if chat else "none").texts
    prompts, steps = model.token_ids(texts), _Steps(len(texts))
    rowing = Rowing(list(map(len, prompts)))
    with (
        installed(model, hooks, rowing),
        model.hooks.capture(model.hooks.select(names), lambda activation: activation[:, -1]) as steps.now,
    ):
        responses = answers(model, texts, max_new_tokens, batch_size, rowing.tell, steps.keep)
    tokens = [[prompt[-1], *answer.tokens] for prompt, answer in zip(prompts, responses, strict=True)]
    return [completion_of(model.tokenizer, *pair) for pair in zip(texts, responses, strict=True)], steps.cache(tokens)


class _Steps:
    """Activations of each step of a generation, text by text.

    Attributes:
        now: those of the latest forward pass, at its last position.
    """

    def __init__(self, n_texts: int) -> None:
        self.now: dict[str, Tensor] = {}
        self._kept: list[list[dict[str, Tensor]]] = [[] for _ in range(n_texts)]

    def keep(self, rows: list[int]) -> None:
        """What has just been computed belongs to these texts."""
        activations = {name: value.float().cpu() for name, value in self.now.items()}
        for place, row in enumerate(rows):
            self._kept[row].append({name: value[place] for name, value in activations.items()})

    def cache(self, tokens: Sequence[Sequence[int]]) -> ActivationCache:
        """All of it, [n_texts, 1 + tokens, …]."""
        lengths = torch.tensor([len(steps) for steps in self._kept])
        rows = Rows(torch.arange(int(lengths.max())) < lengths[:, None])
        for name in self.now:
            stacked = [torch.stack([step[name] for step in steps]) for steps in self._kept]
            rows.put(torch.arange(len(stacked)), {name: torch.nn.utils.rnn.pad_sequence(stacked, batch_first=True)})
        return ActivationCache(rows.values, rows.mask, tokens)
