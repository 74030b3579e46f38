"""The causal probe from end to end, on a tiny cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from interp import load
from interp.errors import InputError
from probes.attribution.settings import PartKind
from probes.causal import __main__ as causal_command
from probes.causal import probe as causal
from probes.causal.restoration import Plan
from probes.harness.results import read_result
from tests.cells import HARMFUL, HARMLESS, q8_0


def test_every_table_beside_its_controls(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.causal.exchange.READ_TOKENS", 2)
    monkeypatch.setattr("probes.causal.experiments.layers_at", lambda n_layers: [1])
    monkeypatch.setattr("probes.causal.experiments.LAYERS", 1)
    baseline = load(tiny("llama"))
    path = q8_0(tiny("llama"), tmp_path / "q8.gguf")
    cell = load(path, like=tiny("llama"))
    before = {name: tensor.clone() for name, tensor in cell.hf.state_dict().items()}
    plan = Plan(kinds=(PartKind.HEAD, PartKind.LAYER), draws=3, refusal_draws=1)
    result = causal.measure(baseline, {"q8": cell}, HARMFUL, HARMLESS, plan=plan, prompts=3)
    result.write(tmp_path / "out")
    assert causal.SAME_PROMPTS in result.warnings
    curves, rescues, patches = (
        read_result(tmp_path / "out" / f"{name}.json").table
        for name in ("causal_restore", "causal_rescue", "causal_patch")
    )
    head, layer = (1, 2, 4, 8, 12), (1, 2, 3)
    assert len(curves) == 2 * (3 * len(head) + 2 * len(layer) + 1)
    everything = curves[curves["kind"] == "everything"]
    assert (everything["margin"] == everything["goal"]).all()
    assert (everything["refusal_rate"] == everything["refusal_goal"]).all()
    assert (curves.loc[curves["k"] == 4, "draws"] == 3).all()
    assert curves.loc[curves["draws"] > 0, "p"].between(1 / 4, 1).all()
    assert curves.loc[curves["draws"] == 0, "p"].isna().all()
    whole = curves[(curves["kind"] == "layer") & (curves["k"] == 3)]
    assert whole.groupby("aim")["margin"].nunique().tolist() == [1, 1]  # all layers, by whichever ranking
    for table in (curves, rescues, patches):
        assert (table["share"].isna() == (table["reason"] != "")).all()
        assert set(table["cell"]) == {"q8"}
    assert set(rescues["prompts"]) == {"harmful", "harmless"}
    assert set(patches["positions"]) == {"instruction", "end", "all"}
    assert all((before[name] == tensor).all() for name, tensor in cell.hf.state_dict().items())
    rendered = causal_command.render(result)
    assert len(rendered.renderables) == 6
    assert str(rendered.renderables[-1]) == "Refusals are counted by: broader lexicon."


def test_parts_that_have_no_ranking(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    with pytest.raises(InputError, match="have no ranking"):
        causal.measure(model, {"x": model}, HARMFUL, HARMLESS, plan=Plan(kinds=(PartKind.OTHER,)))
