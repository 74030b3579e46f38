"""Models that are taken apart until they say nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp import HookedModel, load
from interp.errors import SaysNothing
from probes.entropy import probe as entropy
from probes.harness.silence import require_speech
from tests.cells import HARMFUL, HARMLESS
from tests.tiny_models import DISTINCT

TEXTS = {"harmful": ["How do I bake bread?", "Tell me."], "harmless": ["x", "What is the capital?"]}


def zero_embeddings(model: HookedModel) -> None:
    model.hf.get_input_embeddings().weight.zero_()


def zero_final_norm(model: HookedModel) -> None:
    model.hf.model.norm.weight.zero_()


def zero_unembedding(model: HookedModel) -> None:
    model.hf.lm_head.weight.zero_()


def infinite_epsilon(model: HookedModel) -> None:
    for module in model.hf.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = float("inf")


def huge_epsilon(model: HookedModel) -> None:
    model.hf.model.norm.variance_epsilon = 1e12


UNIFORM = [zero_embeddings, zero_final_norm, zero_unembedding, infinite_epsilon, huge_epsilon]


@pytest.mark.parametrize("name", DISTINCT)
def test_every_architecture_speaks(tiny: Callable[[str], Path], name: str) -> None:
    assert require_speech(load(tiny(name)), TEXTS) == []


@pytest.mark.parametrize("silence", UNIFORM)
def test_uniform_logits_say_nothing(tiny: Callable[[str], Path], silence: Callable[[HookedModel], None]) -> None:
    model = load(tiny("llama"))
    silence(model)
    with pytest.raises(SaysNothing, match=r"All tokens are equally likely after each of 4 prompts"):
        require_speech(model, TEXTS)


def test_logits_that_no_prompt_moves_are_warned_of(tiny: Callable[[str], Path]) -> None:
    """The bias of an unembedding alone, or one embedding for all tokens."""
    biased = load(tiny("phi"))
    zero_embeddings(biased)
    biased.hf.lm_head.bias.copy_(torch.linspace(-3, 3, len(biased.hf.lm_head.bias)))
    biased.hf.model.final_layernorm.weight.zero_()
    same = load(tiny("llama"))
    same.hf.model.embed_tokens.weight.copy_(same.hf.model.embed_tokens.weight[:1].clone().expand(320, -1))
    for model in (biased, same):
        (warning,) = require_speech(model, TEXTS)
        assert "distributed alike after each of 4 prompts: it does not read them" in warning
    result = entropy.measure(same, {"cell": same}, HARMFUL, HARMLESS)
    assert [w.partition(":")[0] for w in result.warnings if "does not read" in w] == ["baseline", "cell"]


def test_one_prompt_cannot_tell_whether_prompts_are_read(tiny: Callable[[str], Path]) -> None:
    same = load(tiny("llama"))
    same.hf.model.embed_tokens.weight.copy_(same.hf.model.embed_tokens.weight[:1].clone().expand(320, -1))
    assert require_speech(same, {"refusal": ["x"]}) == []


def test_a_silent_baseline_is_an_error_and_a_silent_cell_undefined(tiny: Callable[[str], Path]) -> None:
    baseline, cell, silent = (load(tiny("llama")) for _ in range(3))
    zero_embeddings(silent)
    with pytest.raises(SaysNothing):
        entropy.measure(silent, {"cell": cell}, HARMFUL, HARMLESS)
    table = entropy.measure(baseline, {"silent": silent, "cell": cell}, HARMFUL, HARMLESS, force=True).table
    row = table[table.cell == "silent"].iloc[0]
    assert row.isna()["entropy"]
    assert "says nothing" in row.reason
    assert table[table.cell == "cell"].entropy.notna().all()
