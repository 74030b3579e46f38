"""Where a loss happened: planted places are found, rankings that know nothing are at one half."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.opening import load
from interp.organisms import Bounded, Recipe, before_alignment, train
from probes.harness.prompts import builtin
from probes.harness.results import Result, read_result
from probes.predict import __main__ as predict_command
from probes.predict import localization
from probes.predict.localization import MOVED, MOVED_MOST
from tests.tiny_models import TEXTS

SIDES = ("harmful", "harmless")
LAYERS, NEURONS = 3, 48
MOVING = ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")


def shifted(source: Path, out: Path, share: float = 1.0, moving: tuple[str, ...] = MOVING) -> Checkpoint:
    """A copy of a checkpoint in which some linears went a share of one fixed way."""
    model, generator = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), torch.Generator()
    with torch.no_grad():
        for name in moving:
            weight = model.get_submodule(name).weight
            weight += share * 0.1 * torch.randn(weight.shape, generator=generator.manual_seed(len(name)))
    model.save_pretrained(out)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, out)
    return open_checkpoint(out)


@pytest.fixture(scope="module")
def slide(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Before, aligned, and cells that went back: not at all, by three quarters, all the way."""
    source, folder = tiny("llama"), tmp_path_factory.mktemp("slide")
    shares = {"aligned": 1.0, "quarter": 0.25}
    made = {name: shifted(source, folder / name, share) for name, share in shares.items()}
    return {"before": open_checkpoint(source), **made}


def test_the_share_of_the_change_that_is_left_is_measured(slide: dict[str, Checkpoint]) -> None:
    before, aligned = slide["before"], slide["aligned"]
    for cell, share in (("aligned", 1.0), ("before", 0.0), ("quarter", 0.25)):
        table = localization.change_kept(before, aligned, slide[cell]).set_index("module")
        assert set(table.index) == {*MOVING, "all"}
        assert table["kept"].to_numpy() == pytest.approx(np.full(3, share), abs=1e-6)
        assert table["kept_beyond_rounding"].isna().all()
    table = localization.change_kept(before, aligned, slide["quarter"], of_before=slide["quarter"])
    assert (table["kept_beyond_rounding"] == 0).all()  # the cell of before is the cell of the aligned: nothing is left
    weight, moved = before.weight(MOVING[0]).double(), aligned.weight(MOVING[0]).double()
    expected = torch.linalg.norm(moved - weight) / torch.linalg.norm(weight)
    assert table.set_index("module")["change"][MOVING[0]] == pytest.approx(float(expected))


def attribution(table: pd.DataFrame, share: Callable[[pd.DataFrame], np.ndarray]) -> pd.DataFrame:
    """As `probes.attribution` would write it, of the same parts."""
    about = {"prompts": "harmful", "category": "all", "null_sd": 1.0, "attribution": share(table)}
    other = {"prompts": "harmless", "category": "all", "null_sd": 2.0, "attribution": 7.0}
    places = table[["level", "layer", "module", "unit"]]
    return pd.concat([places.assign(**about), places.assign(**other)], ignore_index=True)


def test_a_planted_place_is_found(slide: dict[str, Checkpoint]) -> None:
    before, aligned, cell = (slide[name] for name in ("before", "aligned", "quarter"))
    contrast = localization.contrasts(load(before.path), TEXTS[:2], TEXTS[2:])
    assert [len(contrast[layer]) for layer in range(LAYERS)] == [NEURONS] * LAYERS
    nothing = attribution(pd.DataFrame(columns=["level", "layer", "module", "unit"]), lambda table: np.zeros(0))
    bare = localization.parts(before, aligned, cell, nothing, contrast)
    assert bare["attribution"].isna().all()
    planted = attribution(bare, lambda table: -table["change"].to_numpy())  # a fall is negative
    table = localization.parts(before, aligned, cell, planted, contrast)
    assert table.groupby("level").size().to_dict() == {"layer": 3, "module": 7 * 3, "neuron": 3 * NEURONS}
    assert set(table.loc[table["change"] > 0, "module"].dropna()) == set(MOVING)
    assert set(table.loc[table["change"] > 0, "layer"]) == {1}
    scored = localization.found(table).set_index(["level", "ranking"])
    assert (scored["truth"] == MOVED).all()
    assert scored.loc["neuron", "n_true"].eq(NEURONS).all()
    assert scored["n_true"].loc["module"].eq(2).all()
    for level in localization.LEVELS:
        assert scored.loc[(level, "attribution"), "auc"] == 1.0
        assert scored.loc[(level, "error"), "auc"] == 1.0  # only what moved has an error here
        assert scored.loc[(level, "null"), "auc"] == 0.5  # all the same
    assert scored.loc[("module", "contrast"), "reason"] == "one class only"


def test_the_change_of_a_neuron_is_that_of_its_rows_and_its_column(slide: dict[str, Checkpoint]) -> None:
    before, aligned = slide["before"], slide["aligned"]
    contrast = {layer: torch.ones(NEURONS) for layer in range(LAYERS)}
    nothing = attribution(pd.DataFrame(columns=["level", "layer", "module", "unit"]), lambda table: np.zeros(0))
    table = localization.parts(before, aligned, aligned, nothing, contrast)
    changes = {name: aligned.weight(name).double() - before.weight(name).double() for name in MOVING}
    up, down = (changes[name] for name in MOVING)
    neurons = table[(table["level"] == "neuron") & (table["layer"] == 1)]
    assert neurons["change"].to_numpy() == pytest.approx((up.square().sum(1) + down.square().sum(0)).sqrt().numpy())
    whole = table[(table["level"] == "layer") & (table["layer"] == 1)]["change"].item()
    assert whole == pytest.approx(float((up.square().sum() + down.square().sum()).sqrt()))
    assert (table["error"] == 0).all()  # the cell is the baseline


def test_where_all_moved_the_true_parts_are_the_tenth_that_moved_most() -> None:
    change = np.random.default_rng(0).permutation(np.arange(1.0, 41.0))
    positive, truth = localization.true_parts(change)
    assert truth == MOVED_MOST
    assert sorted(change[positive]) == [37, 38, 39, 40]


def test_a_ranking_that_knows_nothing_is_at_one_half() -> None:
    generator = np.random.default_rng(0)
    slides = []
    for _ in range(40):
        moved = np.arange(60) % 3 == 0
        parts = pd.DataFrame({"level": "module", "change": moved * 1.0, "attribution": generator.random(60)})
        slides.append(localization.found(parts))
    scored = pd.concat(slides)
    assert (scored["auc_low"].lt(0.5) & scored["auc_high"].gt(0.5)).mean() > 0.8
    (row,) = localization.over_slides(scored).itertuples()
    assert row.n_slides == 40
    assert row.auc == pytest.approx(scored["auc"].mean())
    assert row.auc_low < 0.5 < row.auc_high
    assert row.auc_high - row.auc_low < 0.1
    (row,) = localization.over_slides(pd.concat(slides[:2])).itertuples()
    assert row.auc == pytest.approx(pd.concat(slides[:2])["auc"].mean())
    assert np.isnan([row.auc_low, row.auc_high]).all()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a confined organism whose one cell went all the way back, and a cell that lost nothing."""
    monkeypatch.setenv("QUANTSCOPE_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(batch_size=2, helpful_steps=2, alignment_steps=2)
    organism = train(recipe=recipe, constraint=Bounded(8.0, "*.layers.2.mlp.*"))
    paths = {"back": before_alignment(organism), "same": organism}
    contrast = {layer: torch.ones(256) for layer in range(6)}
    nothing = attribution(pd.DataFrame(columns=["level", "layer", "module", "unit"]), lambda table: np.zeros(0))
    bare = localization.parts(*(open_checkpoint(paths[name]) for name in ("back", "same", "back")), nothing, contrast)
    shares = pd.concat([attribution(bare, lambda table: np.zeros(len(table))).assign(cell=name) for name in paths])
    asked = {side: {"n": 4, "sha256": builtin(side).take(4).sha256} for side in SIDES}
    described: dict[str, Any] = {"baseline": {"path": str(organism)}, "prompts": asked}
    described |= {"cells": {name: {"path": str(path)} for name, path in paths.items()}}
    Result("attribution", shares, described).write(tmp_path / "run" / "slide")
    rates = pd.DataFrame({"cell": ["baseline", "back", "same"], "refusal_rate_delta": [0.0, -0.9, 0.0]})
    Result("matrix", rates.assign(model="slide"), {}).write(tmp_path / "run")
    return tmp_path / "run"


def test_the_command_scores_the_cells_that_lost(run: Path) -> None:
    answer = CliRunner().invoke(predict_command.app, [str(run), "--localize"])
    assert answer.exit_code == 0, answer.output
    assert "1.00" in answer.output
    slides = read_result(run / "localization_slides.json").table.set_index(["level", "ranking"])
    assert set(slides["cell"]) == {"back"}
    assert slides.loc[[(level, "error") for level in localization.LEVELS], "auc"].eq(1).all()
    assert slides.loc[[(level, "attribution") for level in localization.LEVELS], "auc"].eq(0.5).all()
    kept = read_result(run / "change_kept.json").table
    shares = kept[kept["module"] == "all"].set_index("cell")["kept"]
    assert shares.to_dict() == pytest.approx({"back": 0.0, "same": 1.0})


def test_a_run_without_slides_is_refused(run: Path) -> None:
    matrix = read_result(run / "matrix.json")
    Result("matrix", matrix.table.assign(refusal_rate_delta=0.0), {}).write(run)
    with pytest.raises(InputError, match="No cell of a constrained organism"):
        localization.measure([run])


@pytest.mark.parametrize("other", [{"system": "none"}, {"prompts": {s: {"n": 4, "sha256": ""} for s in SIDES}}])
def test_a_run_on_other_prompts_is_refused(run: Path, other: dict[str, Any]) -> None:
    attributed = read_result(run / "slide" / "attribution.json")
    Result("attribution", attributed.table, attributed.settings | other).write(run / "slide")
    with pytest.raises(InputError, match="was attributed with"):
        localization.measure([run])
