from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp.generation import end_tokens, generate, last_logits
from interp.model import HookedModel
from interp.opening import load
from tests.tiny_models import HYBRIDS, TEXTS

NEW = 12


def by_transformers(model: HookedModel, prompt: list[int]) -> list[int]:
    """transformers' own greedy decoding of one prompt, without a batch and without pads."""
    ids = torch.tensor([prompt])
    output = model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "phi", "gpt2", "gpt_neox", *HYBRIDS])
def test_a_batch_answers_as_transformers_does_one_by_one(name: str, tiny: Callable[[str], Path]) -> None:
    model = load(tiny(name))
    prompts = model.token_ids(TEXTS)
    model.hf.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    expected = [by_transformers(model, prompt) for prompt in prompts]
    assert [answer.tokens for answer in generate(model, prompts, NEW)] == expected
    assert len({tuple(tokens) for tokens in expected}) > 1

    # Let a token that some answers contain end them: those leave the batch early, the others are not disturbed.
    end = expected[0][NEW // 2]
    model.hf.generation_config.eos_token_id = [end]
    assert end_tokens(model) == {end}
    for answer, tokens in zip(generate(model, prompts, NEW), expected, strict=True):
        assert answer.finished == (end in tokens)
        assert answer.tokens == (tokens[: tokens.index(end)] if end in tokens else tokens)


def test_logits_of_the_first_token(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    prompts = model.token_ids(TEXTS)
    torch.testing.assert_close(last_logits(model, prompts), model.logits(TEXTS), rtol=1e-4, atol=1e-4)


def test_sampling_settings_of_the_checkpoint_are_ignored(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    prompts = model.token_ids(TEXTS)
    plain = generate(model, prompts, NEW)
    model.hf.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=5.0)
    assert generate(model, prompts, NEW) == plain


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_end_of_the_context_cuts_an_answer(name: str, tiny: Callable[[str], Path]) -> None:
    """GPT-2 has no position after it; the other prompt of the batch is answered on."""
    model = load(tiny(name))
    context = model.hf.config.max_position_embeddings
    model.hf.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    whole, nearly, short = [5] * context, [5] * (context - 3), [5, 6]
    answers = generate(model, [whole, nearly, short], 8)
    assert [len(answer.tokens) for answer in answers] == [1, 4, 8]
    assert not any(answer.finished for answer in answers)
    assert answers[2].tokens == by_transformers(model, short)[:8]
