"""Greedy completions of a hooked model, batched: enough to see whether it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from interp.model import HookedModel
from probes.generation import Answer, generate
from probes.thinking import decode_answer, split_thinking

MAX_NEW_TOKENS = 48
BATCH_SIZE = 32


class Completion(NamedTuple):
    """What a model answered.

    Attributes:
        text: the answer without special tokens and without what the model thought first.
        n_tokens: tokens of both, the end-of-sequence token not counted.
        finished: whether the model ended it; else it was cut at the limit.
        thinking: what it thought; "" for nothing.
    """

    text: str
    n_tokens: int
    finished: bool
    thinking: str = ""


def complete(
    model: HookedModel,
    texts: Sequence[str],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    computing: Callable[[list[int]], object] | None = None,
) -> list[Completion]:
    """The most probable continuation token by token (no sampling, no penalties), in the order of the texts.

    What the checkpoint's generation_config.json says about sampling is ignored; its end-of-sequence tokens are kept.

    Args:
        model: hooks that are open act on every step.
        texts: rendered prompts.
        max_new_tokens: where an answer is cut.
        batch_size: prompts generated together, those of similar length.
        computing: told before each forward pass which texts its rows are, for hooks that treat them differently.

    Raises:
        InputError: a prompt that is empty or longer than the context.

    Example:
        >>> [completion] = complete(model, ["How are you?"], max_new_tokens=8)
        >>> completion.text, completion.n_tokens, completion.finished
    """
    given = answers(model, texts, max_new_tokens, batch_size, computing)
    return [_completion(model.tokenizer, text, answer) for text, answer in zip(texts, given, strict=True)]


def answers(
    model: HookedModel,
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
    computing: Callable[[list[int]], object] | None = None,
) -> list[Answer]:
    """`complete`, as token ids."""
    token_ids = model.token_ids(texts)
    order = sorted(range(len(texts)), key=lambda index: len(token_ids[index]))
    found: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        told = None if computing is None else _renamed(computing, indices)
        given = generate(model, [token_ids[index] for index in indices], max_new_tokens, told)
        found |= dict(zip(indices, given, strict=True))
    return [found[index] for index in range(len(texts))]


def _renamed(computing: Callable[[list[int]], object], indices: list[int]) -> Callable[[list[int]], object]:
    """Told rows of a batch, tells which texts they are."""
    return lambda rows: computing([indices[row] for row in rows])


def _completion(tokenizer: Any, prompt: str, answer: Answer) -> Completion:
    thought = split_thinking(prompt, decode_answer(tokenizer, answer.tokens))
    return Completion(thought.answer.strip(), len(answer.tokens), answer.finished, thought.thinking)
