"""The refusal direction against hidden states of the bare Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine as cosine_distance
from transformers import AutoModelForCausalLM

from interp import HookedModel, load
from probes.direction import probe as direction
from probes.harness.prompts import PromptSet
from tests.cells import HARMFUL, HARMLESS, Noisy, q8_0


def bare_streams(bare: Any, ids: torch.Tensor) -> np.ndarray:
    """[layer, d_model] at the last token; `output_hidden_states` has the final norm applied to the last one."""
    streams: list[np.ndarray] = []

    def keep(module: object, args: object, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        streams.append(stream[0, -1].double().numpy())

    handles = [block.register_forward_hook(keep) for block in bare.model.layers]
    with torch.no_grad():
        bare(ids)
    for handle in handles:
        handle.remove()
    return np.stack(streams)


def bare_directions(checkpoint: Path, model: HookedModel) -> np.ndarray:
    """[layer, d_model] from the Hugging Face model, one raw text at a time, float64 means."""
    bare = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    bare.load_state_dict(model.hf.state_dict())
    means = []
    for prompts in (HARMFUL, HARMLESS):
        ids = [model.tokenizer(text, return_tensors="pt").input_ids for text in prompts.instructions]
        means.append(np.mean([bare_streams(bare, one) for one in ids], axis=0))
    return means[0] - means[1]


def test_table_against_the_bare_model(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tiny("llama")
    baseline = load(checkpoint)
    cell = load(q8_0(checkpoint, tmp_path / "cell.gguf"), like=checkpoint)
    table = direction.measure(baseline, {"q8": cell}, HARMFUL, HARMLESS, template="none").table
    before, after = bare_directions(checkpoint, baseline), bare_directions(checkpoint, cell)
    rows = table[table["cell"] == "q8"]
    assert rows["layer"].tolist() == [0, 1, 2]
    assert rows["study_layer"].tolist() == [False, False, True]  # round(0.65 · 3) = 2
    for layer, row in enumerate(rows.itertuples()):
        assert row.norm == pytest.approx(np.linalg.norm(after[layer]), rel=1e-4)
        assert row.norm_ratio == pytest.approx(np.linalg.norm(after[layer]) / np.linalg.norm(before[layer]), rel=1e-4)
        assert row.cosine == pytest.approx(1 - cosine_distance(after[layer], before[layer]), abs=1e-6)
    own = table[table["cell"] == "baseline"]
    assert own["cosine"].tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    assert own["norm_ratio"].tolist() == [1.0] * 3


def test_scaled_and_reversed_stream(tiny: Callable[[str], Path]) -> None:
    """A stream multiplied by −2 has a direction twice as long that points the other way."""
    baseline = load(tiny("llama"))
    cell = Noisy(baseline, {"blocks.2.hook_resid_post": lambda resid: -2 * resid})
    table = direction.measure(baseline, {"reversed": cell}, HARMFUL, HARMLESS).table
    last = table[(table["cell"] == "reversed") & (table["layer"] == 2)].iloc[0]
    assert (last["norm_ratio"], last["cosine"]) == pytest.approx((2.0, -1.0), abs=1e-6)


def test_no_direction_is_undefined_with_a_reason(tiny: Callable[[str], Path]) -> None:
    """In a stream that is constant there is no direction, so no cosine."""
    baseline = load(tiny("llama"))
    cell = Noisy(baseline, {"blocks.1.hook_resid_post": torch.ones_like})
    table = direction.measure(baseline, {"constant": cell}, HARMFUL, HARMLESS).table
    row = table[(table["cell"] == "constant") & (table["layer"] == 1)].iloc[0]
    assert row["norm"] == 0.0
    assert np.isnan(row["cosine"])
    assert "no direction" in row["reason"]


def test_result_does_not_depend_on_the_batch_size(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    sets = (HARMFUL, PromptSet("other", ("Tell me.", "What is the capital of the country with the maple leaf?")))
    cell = Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid + 0.1})
    alone, together = (direction.measure(baseline, {"c": cell}, *sets, batch_size=size) for size in (1, None))
    np.testing.assert_allclose(alone.table["norm"], together.table["norm"], rtol=1e-4)
    assert any("4 harmful but 2 harmless" in warning for warning in alone.warnings)
