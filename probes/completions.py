"""Greedy completions of a hooked model, batched: enough to see whether it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from interp.model import HookedModel

MAX_NEW_TOKENS = 48
BATCH_SIZE = 32


class Completion(NamedTuple):
    """What a model answered.

    Attributes:
        text: the answer without special tokens.
        n_tokens: its tokens, the end-of-sequence token not counted.
        finished: whether the model ended it; else it was cut at the limit.
    """

    text: str
    n_tokens: int
    finished: bool


def complete(
    model: HookedModel,
    texts: Sequence[str],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> list[Completion]:
    """The most probable continuation token by token (no sampling, no penalties), in the order of the texts.

    What the checkpoint's generation_config.json says about sampling is ignored; its end-of-sequence tokens are kept.

    Args:
        model: hooks that are open act on every step.
        texts: rendered prompts.
        max_new_tokens: where an answer is cut.
        batch_size: prompts generated together, those of similar length.

    Raises:
        InputError: a prompt that is empty or longer than the context.
    """
    token_ids = model.token_ids(texts)
    order = sorted(range(len(texts)), key=lambda index: len(token_ids[index]))
    completions: dict[int, Completion] = {}
    with _greedy(model) as ends:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            answers = _generate(model, [token_ids[index] for index in indices], max_new_tokens)
            completions |= {
                index: _completion(model.tokenizer, answer.tolist(), ends)
                for index, answer in zip(indices, answers, strict=True)
            }
    return [completions[index] for index in range(len(texts))]


@contextmanager
def _greedy(model: HookedModel) -> Iterator[set[int]]:
    """Replace the checkpoint's generation config by plain greedy decoding; yields the tokens that end an answer."""
    from transformers import GenerationConfig

    original = model.hf.generation_config
    declared = original.eos_token_id
    ends = {model.tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
    pad = model.tokenizer.pad_token_id
    model.hf.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0 if pad is None else pad
    )
    try:
        yield ends
    finally:
        model.hf.generation_config = original


def _generate(model: HookedModel, token_ids: Sequence[Sequence[int]], max_new_tokens: int) -> Int[Tensor, "batch new"]:
    """Pads go to the left, so that all answers start at the same column."""
    width = max(map(len, token_ids))
    pad = model.hf.generation_config.pad_token_id
    inputs = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in token_ids], device=model.hf.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in token_ids], device=model.hf.device)
    with torch.no_grad():
        generated = model.hf.generate(inputs, attention_mask=mask, max_new_tokens=max_new_tokens)
    return generated[:, width:].cpu()


def _completion(tokenizer: Any, answer: list[int], ends: set[int]) -> Completion:
    end = next((position for position, token in enumerate(answer) if token in ends), None)
    tokens = answer[:end]
    return Completion(tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens), end is not None)
