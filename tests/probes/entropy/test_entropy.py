"""Entropy against scipy, and the whole probe against the bare Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import load
from probes.entropy import probe as entropy
from tests.cells import HARMFUL, HARMLESS, q8_0


@given(st.lists(st.floats(-80, 80), min_size=1, max_size=40))
def test_entropy_is_scipys(logits: list[float]) -> None:
    expected = stats.entropy(softmax(np.array(logits)))
    assert entropy.entropy(torch.tensor(logits, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-12)


def test_known_entropies() -> None:
    assert entropy.entropy(torch.zeros(2, 1024)).tolist() == pytest.approx([np.log(1024)] * 2, rel=1e-14)
    certain = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert entropy.entropy(certain).item() == 0.0


def bare_entropies(checkpoint: Path, weights: dict[str, torch.Tensor] | None, texts: tuple[str, ...]) -> np.ndarray:
    """One text at a time, without our code: chat template, tokenizer, last logits."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if weights is not None:
        model.load_state_dict(weights)
    found = []
    for text in texts:
        turn = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            found.append(stats.entropy(softmax(model(ids).logits[0, -1].double().numpy())))
    return np.array(found)


def test_table_against_bare_models(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tiny("llama")
    cell = load(q8_0(checkpoint, tmp_path / "cell.gguf"), like=checkpoint)
    result = entropy.measure(load(checkpoint), {"q8": cell}, HARMFUL, HARMLESS)
    table = result.table.set_index(["cell", "prompts"])
    assert list(table.index) == [(cell, side) for cell in ("baseline", "q8") for side in ("harmful", "harmless")]
    for side, prompts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        before = bare_entropies(checkpoint, None, prompts.instructions)
        after = bare_entropies(checkpoint, cell.hf.state_dict(), prompts.instructions)
        row = table.loc[("q8", side)]
        assert row["entropy"] == pytest.approx(after.mean(), abs=1e-5)
        assert row["shift"] == pytest.approx((after - before).mean(), abs=1e-5)
        bounds = stats.ttest_rel(after, before).confidence_interval(0.95)
        assert [row["shift_low"], row["shift_high"]] == pytest.approx([bounds.low, bounds.high], abs=1e-5)
        assert row["n"] == len(prompts)
        assert table.loc[("baseline", side), "shift"] == 0.0
    assert result.settings["cells"]["q8"]["format"] == "gguf"
    assert len(result.settings["baseline"]["sha256"]) == 64
    assert result.settings["prompts"]["harmful"]["sha256"] == HARMFUL.sha256
    assert result.settings["dtype"] == "float32"
