"""Completions against a plain loop of argmax on the bare model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from interp import HookedModel, load
from interp.generation import Completion, complete
from tests.tiny_models import TEXTS


def slow(model: HookedModel, text: str, limit: int, ends: set[int]) -> Completion:
    """One text at a time, the whole text anew for every token, without a cache."""
    ids = model.token_ids([text])[0]
    answer: list[int] = []
    for _ in range(limit):
        with torch.no_grad():
            token = int(model.hf(torch.tensor([ids + answer])).logits[0, -1].argmax())
        if token in ends:
            return Completion(model.tokenizer.decode(answer, skip_special_tokens=True).strip(), len(answer), True)
        answer.append(token)
    return Completion(model.tokenizer.decode(answer, skip_special_tokens=True).strip(), len(answer), False)


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "phi", "gpt2"])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_equals_a_plain_loop(name: str, batch_size: int, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    expected = [slow(model, text, 12, {model.tokenizer.eos_token_id}) for text in TEXTS]
    assert complete(model, TEXTS, max_new_tokens=12, batch_size=batch_size) == expected


def test_stops_at_every_declared_end(tiny: Callable[[str], Path]) -> None:
    """Chat models declare several end tokens; whichever comes first ends the answer and is not part of it."""
    model = load(tiny("llama"))
    ids = model.token_ids(TEXTS[:1])[0]
    first_two: list[int] = []
    for _ in range(2):
        first_two.append(int(model.hf(torch.tensor([ids + first_two])).logits[0, -1].argmax()))
    model.hf.generation_config.eos_token_id = [1, first_two[1]]
    answer = complete(model, TEXTS[:1])[0]
    assert answer.finished
    assert answer.n_tokens == (1 if first_two[0] != first_two[1] else 0)


def test_sampling_settings_of_the_checkpoint_are_ignored_and_kept(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    plain = complete(model, TEXTS, max_new_tokens=8)
    theirs = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=50.0, max_length=3)
    model.hf.generation_config = theirs
    assert complete(model, TEXTS, max_new_tokens=8) == plain
    assert model.hf.generation_config is theirs


def test_open_hooks_act_on_every_step(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    with model.intervene({"ln_final.hook_normalized": torch.zeros_like}):
        answers = complete(model, TEXTS, max_new_tokens=5)
    assert len({answer.text for answer in answers}) == 1  # every logit is equal, so is every token
