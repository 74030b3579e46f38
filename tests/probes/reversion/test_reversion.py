"""How far back a cell went: all the way, not at all, and as known of the organism that the package ships for it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from interp import HookedModel, load
from interp.errors import InputError, SaysNothing
from interp.organisms.training import SHIPPED
from probes import Cells, reversion
from probes.harness.results import read_result
from probes.reversion import __main__ as command
from probes.reversion.projection import Projection
from tests.cells import HARMFUL, HARMLESS
from tests.gguf_files import write_gguf

DRAWS = 19
MOVED = "model.layers.1.mlp.up_proj"


def shifted(tiny: Callable[[str], Path], seed: int, size: float = 0.3, only: str = "") -> HookedModel:
    """A copy of the tiny model whose linears (or one of them) were moved at random, as training would have."""
    model = load(tiny("llama"))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.hf.named_parameters():
        if "proj" in name and only in name:
            parameter.data += size * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def baseline(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


def measured(baseline: HookedModel, before: HookedModel, cell: HookedModel) -> pd.DataFrame:
    result = reversion.measure(baseline, {"cell": cell}, HARMFUL, HARMLESS, before=before, draws=DRAWS)
    return result.table.set_index(["of", "where", "prompts"]).sort_index()


def test_a_cell_that_is_the_unaligned_model_went_all_the_way(
    baseline: HookedModel, tiny: Callable[[str], Path]
) -> None:
    table = measured(baseline, shifted(tiny, 1), shifted(tiny, 1))
    rows = table[table["reason"] == ""]
    np.testing.assert_allclose(rows["back"], 1, atol=1e-4)
    np.testing.assert_allclose(rows.loc["weights", "p"], 1 / (1 + DRAWS))
    assert rows.loc[("logits", "all", "harmful"), "n"] == len(HARMFUL)


def test_half_of_the_way_in_weights_is_one_half(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    before, cell = shifted(tiny, 1), load(tiny("llama"))
    for end, middle in zip(before.hf.parameters(), cell.hf.parameters(), strict=True):
        middle.data.lerp_(end.data, 0.5)
    table = measured(baseline, before, cell)
    np.testing.assert_allclose(table.loc["weights", "back"], 0.5, atol=1e-5)


def test_a_cell_equal_to_its_baseline_went_nowhere(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    rows = measured(baseline, shifted(tiny, 1), load(tiny("llama"))).drop("codes")
    assert (rows["back"] == 0).all()
    assert (rows["p"] == 1).all()


def test_an_error_of_another_direction_is_the_null(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    """Independent errors: over 12 pairs p is not small more often than chance, and the projection is within it."""
    weights = [
        measured(baseline, shifted(tiny, 1, only=MOVED), shifted(tiny, seed)).loc[("weights", "all", "")]
        for seed in range(2, 14)
    ]
    p = np.array([row["p"] for row in weights])
    assert 0.25 < p.mean() < 0.75
    assert (p <= 0.05).sum() <= 3
    assert max(abs(row["back"]) for row in weights) < 0.3


def test_what_alignment_did_not_move_has_a_reason(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    table = measured(baseline, shifted(tiny, 1, only=MOVED), shifted(tiny, 1, only=MOVED))
    still = table.loc[("weights", "model.layers.0.mlp.up_proj", "")]
    assert np.isnan(still["back"])
    assert "moved nothing" in still["reason"]
    assert table.loc[("weights", MOVED, ""), "back"] == pytest.approx(1, abs=1e-5)


def test_the_cell_is_as_it_was(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    cell = shifted(tiny, 2)
    start = {name: parameter.clone() for name, parameter in cell.hf.named_parameters()}
    measured(baseline, shifted(tiny, 1), cell)
    assert all(torch.equal(parameter, start[name]) for name, parameter in cell.hf.named_parameters())


def test_models_that_are_not_from_before_alignment(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="the baseline itself"):
        measured(baseline, load(tiny("llama")), shifted(tiny, 1))
    silent = load(tiny("llama"))
    silent.hf.get_input_embeddings().weight.data.zero_()
    with pytest.raises(SaysNothing, match="the model says nothing"):
        measured(baseline, silent, shifted(tiny, 1))
    with pytest.raises(InputError, match="other layers"):
        measured(baseline, load(tiny("qwen3")), shifted(tiny, 1))


def test_a_model_that_got_a_token_when_it_was_aligned(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    aligned, cell, before = load(tiny("llama")), shifted(tiny, 1), shifted(tiny, 1)
    for model in (aligned, cell):
        model.hf.resize_token_embeddings(model.hf.config.vocab_size + 3, mean_resizing=False)
    table = measured(aligned, before, cell)
    np.testing.assert_allclose(table.loc["logits", "back"], 1, atol=1e-4)


def test_one_prompt_is_one(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    cells = {"cell": shifted(tiny, 1)}
    result = reversion.measure(baseline, cells, HARMFUL.take(1), HARMLESS.take(1), before=shifted(tiny, 2), draws=1)
    rows = result.table.set_index("of")
    assert (rows.loc["logits", "n"] == 1).all()
    assert (rows.loc["activations", "n"] == 1).all()


def test_a_cell_that_could_not_be_measured_is_printed(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    broken = shifted(tiny, 1)
    broken.hf.get_input_embeddings().weight.data.fill_(np.nan)
    cells = {"cell": shifted(tiny, 1), "broken": broken}
    result = reversion.measure(baseline, cells, HARMFUL, HARMLESS, before=shifted(tiny, 2), draws=1)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(command.render(result))
    said = console.export_text()
    assert "broken" in said
    assert "nan," not in said


def test_the_interval_holds_the_ratio_of_sums() -> None:
    squares = np.array([1.0, 2.0, 4.0, 8.0])
    estimate = Projection(0.7 * squares + np.array([0.1, -0.1, 0.1, -0.1]), squares, 4).estimate()
    assert estimate.value == pytest.approx(0.7)
    assert estimate.low < 0.7 < estimate.high


def test_the_fragile_organism_is_back_where_it_began(tmp_path: Path) -> None:
    """It learned to refuse inside Q4_0's rounding intervals, in its MLPs: every code there is the unaligned model's."""
    before, fragile = (next(SHIPPED.glob(name)) for name in ("*alignment0-*", "*inside*"))
    bare = AutoModelForCausalLM.from_pretrained(fragile, dtype=torch.float32)
    kind = gguf.GGMLQuantizationType.Q4_0
    cell = write_gguf(tmp_path / "Q4_0.gguf", bare.state_dict(), bare.config, "llama", kind)
    options = ["--baseline", fragile, "--quantized", cell, "--before", before, "--limit", 4, "--draws", 2]
    done = CliRunner().invoke(command.app, [*map(str, options), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    table = read_result(tmp_path / "reversion.json").table.set_index(["of", "where", "prompts"]).sort_index()
    codes = table.loc["codes"]
    assert len(codes) == 1 + 18
    assert (codes["back"] == 1).all()
    assert (codes["random"] < 0.7).all()
    assert table.loc[("logits", "all", "harmful"), "back"] == pytest.approx(1, abs=0.05)
    assert table.loc[("logits", "all", "harmful"), "random_high"] < 0.5
    attention = table.loc[("weights", "model.layers.0.self_attn.q_proj", "")]
    assert "moved nothing" in attention["reason"]
    assert "same codes" in done.output


def test_cells_open_lazily(tiny: Callable[[str], Path], baseline: HookedModel) -> None:
    """A dense copy has no codes, and says so."""
    cells = Cells({"copy": tiny("llama")}, baseline)
    table = reversion.measure(baseline, cells, HARMFUL, HARMLESS, before=shifted(tiny, 1), draws=1).table
    codes = table[table["of"] == "codes"].iloc[0]
    assert np.isnan(codes["back"])
    assert "dense" in codes["reason"]
