"""The attribution probe's table and command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp import cli, load
from probes import attribution, margin
from probes.attribution import __main__ as attribution_command
from probes.harness.prompts import PromptSet
from probes.harness.results import Result, read_result
from probes.margin import openings
from tests.attributed import OPENINGS, noisy
from tests.cells import HARMFUL, HARMLESS, Noisy, q8_0

LABELLED = PromptSet(HARMFUL.name, HARMFUL.instructions, ("theft", "theft", "space", "theft"))
TOLERANCE = 2e-6


@pytest.fixture(scope="module", autouse=True)
def few_openings() -> Iterator[None]:
    """A random model never refuses, and the lexicon's openings take one pass for each of many beginnings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openings, "find_openings", lambda *_: OPENINGS)
        yield


@pytest.fixture(scope="module")
def result(tiny: Callable[[str], Path]) -> Result:
    """Everything that a table can hold, of a cell with noise in every parameter."""
    baseline = load(tiny("llama"))
    cells = {"noisy": noisy(tiny("llama")), "same": load(tiny("llama"))}
    options: dict[str, Any] = {"categories": True, "units": None, "group_size": 8, "template": "none"}
    return attribution.measure(baseline, cells, LABELLED, HARMLESS, **options)


def of(result: Result, cell: str, level: str, **where: Any) -> pd.DataFrame:
    rows = result.table[(result.table["cell"] == cell) & (result.table["level"] == level)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def test_total_is_the_shift_that_the_margin_probe_measures(result: Result, tiny: Callable[[str], Path]) -> None:
    cells = {"noisy": noisy(tiny("llama"))}
    measured = margin.measure(load(tiny("llama")), cells, LABELLED, HARMLESS, template="none")
    totals = of(result, "noisy", "total").set_index(["prompts", "category"])
    expected = measured.table[measured.table["cell"] == "noisy"].set_index(["prompts", "category"])
    assert set(totals.index) == {("harmful", c) for c in ("all", "theft", "space")} | {("harmless", "all")}
    for index, row in totals.iterrows():
        assert row["shift"] == pytest.approx(expected.loc[index, "shift"], abs=1e-5)
        assert row["attribution"] == pytest.approx(row["shift"], abs=0.01)
        assert row["gap"] == pytest.approx(row["attribution"] - row["shift"])
    assert totals["n"].tolist() == [4, 3, 1, 4]
    assert totals.loc[("harmful", "space"), "attribution_low"] != totals.loc[("harmful", "space"), "attribution_low"]


@pytest.mark.parametrize("where", [("harmful", "all"), ("harmful", "theft"), ("harmless", "all")])
def test_levels_are_partitions(result: Result, where: tuple[str, str]) -> None:
    chosen = {"prompts": where[0], "category": where[1]}

    def total(level: str, **more: Any) -> float:
        return of(result, "noisy", level, **chosen, **more)["attribution"].sum()

    everything = total("total")
    assert total("parameter") == pytest.approx(everything, abs=TOLERANCE)
    assert total("layer") + total("other") == pytest.approx(everything, abs=TOLERANCE)
    assert total("module") == pytest.approx(total("layer"), abs=TOLERANCE)
    assert total("head") + total("neuron") == pytest.approx(total("module"), abs=TOLERANCE)
    linears = total("parameter", module="linear weights") + total("parameter", module="unembedding")
    assert total("neuron_out") == pytest.approx(linears, abs=TOLERANCE)
    assert total("neuron_in") == pytest.approx(linears, abs=TOLERANCE)
    if where[1] == "all":
        assert total("group") == pytest.approx(total("parameter", module="linear weights"), abs=TOLERANCE)
        assert len(of(result, "noisy", "group", **chosen, module="model.layers.0.mlp.down_proj")) == 32 * 6


def test_null_of_independent_parts_adds_up(result: Result) -> None:
    def variance(level: str) -> float:
        return of(result, "noisy", level, prompts="harmful", category="all")["null_sd"].pow(2).sum()

    assert variance("parameter") == pytest.approx(variance("total"))
    assert variance("layer") + variance("other") == pytest.approx(variance("total"))
    modules = of(result, "noisy", "module", prompts="harmful", category="all")
    np.testing.assert_allclose(modules["z"], modules["attribution"] / modules["null_sd"])
    assert modules["p"].between(0, 1).all()
    assert of(result, "noisy", "module", category="theft")["z"].isna().all()


def test_null_of_a_tied_embedding_is_of_both_of_its_uses(tiny: Callable[[str], Path]) -> None:
    cells = {"noisy": noisy(tiny("gpt2"))}
    found = attribution.measure(load(tiny("gpt2")), cells, HARMFUL, HARMLESS, template="none", max_steps=1)
    chosen = {"prompts": "harmful"}
    tied = of(found, "noisy", "other", **chosen, module="transformer.wte.weight").iloc[0]
    uses = [of(found, "noisy", "parameter", **chosen, module=f"{use}embedding").iloc[0] for use in ("", "un")]
    position = of(found, "noisy", "other", **chosen, module="transformer.wpe.weight").iloc[0]
    for column, power in (("attribution", 1), ("first_order", 1), ("null_sd", 2)):
        expected = sum(use[column] ** power for use in uses) - position[column] ** power
        assert tied[column] ** power == pytest.approx(expected, rel=1e-4)
    levels = (of(found, "noisy", level, **chosen)["null_sd"].pow(2).sum() for level in ("layer", "other", "total"))
    layer, other, total = levels
    assert layer + other == pytest.approx(total)


def test_an_equal_cell_is_zero_everywhere(result: Result) -> None:
    same = result.table[result.table["cell"] == "same"]
    assert (same["attribution"] == 0).all()
    assert (same["shift"].dropna() == 0).all()
    assert result.settings["attributed"]["same"]["largest_gap"] == 0


def test_how_exact_it_is_can_be_read(result: Result) -> None:
    told = result.settings["attributed"]["noisy"]
    assert told["complete"]
    assert told["steps"] >= 8
    assert told["largest_gap"] < 0.01
    assert told["end_of_path_minus_cell"] < 1e-5
    assert told["drawn_variance_over_formula"] == pytest.approx(1, abs=0.3)
    assert json.dumps(dict(result.settings))


def test_only_the_largest_units_are_kept(tiny: Callable[[str], Path], result: Result) -> None:
    cells = {"noisy": noisy(tiny("llama"))}
    few = attribution.measure(load(tiny("llama")), cells, LABELLED, HARMLESS, units=3, template="none")
    kept = of(few, "noisy", "neuron_in", prompts="harmful")["attribution"].abs()
    every = of(result, "noisy", "neuron_in", prompts="harmful", category="all")["attribution"].abs()
    assert kept.tolist() == pytest.approx(sorted(every, reverse=True)[:3], rel=1e-3)
    assert len(of(few, "noisy", "neuron", prompts="harmful")) == 3 * 48  # those that can be restored are all there


def test_a_cell_that_computes_nan_does_not_stop_the_others(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    broken = Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid * float("nan")})
    cells = {"broken": broken, "works": noisy(tiny("llama"))}
    table = attribution.measure(baseline, cells, HARMFUL, HARMLESS, template="none").table
    assert "NaN" in table[table["cell"] == "broken"]["reason"].item()
    assert (table[table["cell"] == "works"]["reason"] == "").all()
    alone = attribution.measure(baseline, {"broken": broken}, HARMFUL, HARMLESS, template="none").table
    assert list(alone) == list(table)


def test_command(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GGUF cell, whose embedding and unembedding are quantized, too."""
    cell = q8_0(tiny("llama"), tmp_path / "llama-q8.gguf")
    for prompts in (HARMFUL, HARMLESS):
        (tmp_path / prompts.name).write_text("\n".join(prompts.instructions))
    files = ["--harmful", str(tmp_path / HARMFUL.name), "--harmless", str(tmp_path / HARMLESS.name)]
    arguments = ["--baseline", str(tiny("llama")), "--quantized", str(cell), *files, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["attribution", *arguments, "--steps", "2", "--units", "5"])
    with pytest.raises(SystemExit) as ended:
        cli.run(attribution_command.app)
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "Modules that moved it" in printed
    stored = read_result(tmp_path / "out" / "attribution.json")
    kinds = stored.table[stored.table["level"] == "parameter"]["module"]
    assert {"linear weights", "embedding", "unembedding"} <= set(kinds)
    assert stored.settings["attributed"]["llama-q8"]["complete"]
