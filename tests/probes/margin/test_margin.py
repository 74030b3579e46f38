"""The margin probe against bare logits, and its separation against textbook formulas and scipy's bootstrap."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from interp import load
from probes.harness.prompts import PromptSet
from probes.harness.results import read_result
from probes.margin import probe as margin
from probes.margin.d_prime import separations
from probes.margin.openings import lexicon_openings
from probes.margin.refusal_margin import margins as margins_of
from probes.stats.intervals import rate_interval
from tests.cells import HARMFUL, HARMLESS, Noisy, q8_0

SORTED = PromptSet("sorted", HARMFUL.instructions, ("theft", "money", "theft", ""))


def test_table_against_margins_prompt_by_prompt(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tiny("llama")
    baseline, cell = load(checkpoint), load(q8_0(checkpoint, tmp_path / "cell.gguf"), like=checkpoint)
    result = margin.measure(baseline, {"q8": cell}, SORTED, HARMLESS, template="none")
    openings = lexicon_openings(baseline.tokenizer)  # a random model refuses nothing
    assert any("the study's lexicon's, not its own" in warning for warning in result.warnings)
    assert result.settings["openings"]["source"] == "lexicon"
    assert "I'm sorry" in [opening["text"] for opening in result.settings["openings"]["openings"]]
    before, after = (
        margins_of(model, list(SORTED.instructions), openings).double().numpy() for model in (baseline, cell)
    )

    table = result.table.set_index(["cell", "prompts", "category"])
    assert list(table.loc[("q8", "harmful")].index) == ["theft", "money", "all"]
    row = table.loc[("q8", "harmful", "all")]
    bounds = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (row["margin"], row["shift"]) == pytest.approx((after.mean(), (after - before).mean()), abs=1e-5)
    assert (row["shift_low"], row["shift_high"]) == pytest.approx((bounds.low, bounds.high), abs=1e-5)
    theft = table.loc[("q8", "harmful", "theft")]
    assert (theft["n"], theft["shift"]) == (2, pytest.approx((after - before)[[0, 2]].mean(), abs=1e-5))
    assert table.loc[("baseline", "harmful", "all"), "shift"] == 0.0

    prompts = result.prompts.table
    rows = prompts[(prompts["cell"] == "q8") & (prompts["prompts"] == "harmful")]
    assert rows["prompt"].tolist() == list(SORTED.instructions)
    assert rows["category"].tolist() == list(SORTED.categories)
    np.testing.assert_allclose(rows["shift"], after - before, atol=1e-5)
    assert len(prompts) == 16


def test_signs_that_change_are_counted_in_both_directions(tiny: Callable[[str], Path], monkeypatch: object) -> None:
    """Margins given prompt by prompt: 3 of 4 harmful prompts go to answering, 1 harmless one to refusing."""
    baseline = load(tiny("llama"))
    cell = Noisy(baseline, {})
    values = {
        (id(baseline), "break"): [1.0, 2.0, 0.5, -1.0],
        (id(baseline), "price"): [-1.0, -2.0, -3.0, 0.0],
        (id(cell), "break"): [-1.0, 0.0, -0.5, -2.0],
        (id(cell), "price"): [-2.0, -1.0, 4.0, 0.0],
    }

    def given(model: object, texts: list[str], *_: object) -> torch.Tensor:
        return torch.tensor(values[id(model), "break" if "break" in texts[0] else "price"])

    monkeypatch.setattr(margin, "margins", given)  # type: ignore[attr-defined]
    result = margin.measure(baseline, {"cell": cell}, HARMFUL, HARMLESS)
    table = result.table.set_index(["cell", "prompts"])
    row = table.loc[("cell", "harmful")]
    assert (row["to_answer"], row["to_refusal"]) == (0.75, 0.0)
    wilson = rate_interval(torch.tensor([True, True, True, False]))
    assert (row["to_answer_low"], row["to_answer_high"]) == (wilson.low, wilson.high)
    row = table.loc[("cell", "harmless")]
    assert (row["to_answer"], row["to_refusal"]) == (0.0, 0.25)
    assert table.loc[("baseline", "harmful"), "to_answer"] == 0.0
    found = result.separation.table.set_index("cell").loc["cell"]
    a, b = np.array(values[id(cell), "break"]), np.array(values[id(cell), "price"])
    expected = (a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    assert found["d_prime"] == pytest.approx(expected)


def test_separation_against_scipys_bootstrap() -> None:
    random = np.random.default_rng(0)
    above, below = random.normal(3, 1, (2, 60)), random.normal(0, 2, (2, 50))
    above[1] = above[0] - 1 + random.normal(0, 0.1, 60)
    below[1] = below[0]
    baseline, cell = separations(above, below)

    def d_prime(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        spread = np.sqrt((x.var(axis, ddof=1) + y.var(axis, ddof=1)) / 2)
        return (x.mean(axis) - y.mean(axis)) / spread

    assert cell["d_prime"] == pytest.approx(d_prime(above[1], below[1]))
    assert cell["d_prime_shift"] == pytest.approx(d_prime(above[1], below[1]) - d_prime(above[0], below[0]))
    expected = stats.bootstrap(
        (above[1], below[1]), d_prime, method="percentile", n_resamples=9999, vectorized=True, rng=1
    ).confidence_interval
    assert (cell["d_prime_low"], cell["d_prime_high"]) == pytest.approx(tuple(expected), abs=0.05)
    assert cell["d_prime_shift_high"] < 0
    # Paired: the shift is known better than either level, because both have the same prompts.
    assert cell["d_prime_shift_high"] - cell["d_prime_shift_low"] < 0.5 * (cell["d_prime_high"] - cell["d_prime_low"])
    assert baseline["d_prime_shift"] == baseline["d_prime_shift_low"] == baseline["d_prime_shift_high"] == 0.0
    assert cell["shift_by_means"] + cell["shift_by_spread"] == pytest.approx(cell["d_prime_shift"])


def test_shift_is_split_into_means_and_spread() -> None:
    """Both groups moved closer by 1 at the same spread; then the same means with twice the spread."""
    above, below = np.array([3.0, 4.0, 5.0]), np.array([-1.0, 0.0, 1.0])
    closer = separations(np.stack([above, above - 1]), np.stack([below, below]))[1]
    assert (closer["shift_by_means"], closer["shift_by_spread"]) == pytest.approx((-1.0, 0.0))
    wider = separations(np.stack([above, 2 * above - 4]), np.stack([below, 2 * below]))[1]
    assert (wider["shift_by_means"], wider["shift_by_spread"]) == pytest.approx((0.0, -2.0))


@pytest.mark.parametrize("n", [1, 3])
def test_without_spread_there_is_no_separation(n: int) -> None:
    for row in separations(np.full((2, n), 1.0), np.zeros((2, n))):
        assert np.isnan(row["d_prime"])
        assert "two prompts on each side" in row["reason"]


def test_result_does_not_depend_on_the_batch_size(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    cell = Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid + 0.1})
    alone, together = (
        margin.measure(baseline, {"c": cell}, HARMFUL, HARMLESS, openings="lexicon", batch_size=size)
        for size in (1, None)
    )
    np.testing.assert_allclose(alone.prompts.table["margin"], together.prompts.table["margin"], atol=1e-4)
    assert not any("lexicon" in warning for warning in alone.warnings)  # it was asked for


def test_three_tables_are_written_and_an_undefined_cell_keeps_its_reason(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    baseline = load(tiny("llama"))
    cell = Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid * torch.nan})
    result = margin.measure(baseline, {"broken": cell}, HARMFUL, HARMLESS, openings="lexicon")
    parquet, document = result.write(tmp_path)
    assert (parquet.name, document.name) == ("margin.parquet", "margin.json")
    for name in ("margin", "margin_prompts", "margin_separation", "margin_losses", "margin_reliability"):
        stored = read_result(tmp_path / f"{name}.json")
        broken = stored.table[stored.table["cell"] == "broken"]
        assert broken["reason"].str.contains("NaN or infinity").all()
        assert len(broken) == 1
        assert stored.settings["openings"]["source"] == "lexicon"
    assert "NaN" not in json.dumps(json.loads(document.read_text()))
    assert pd.read_parquet(parquet)["cell"].tolist()[-1] == "broken"
