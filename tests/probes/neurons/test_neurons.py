"""The safety-neuron probe against a slow plain-numpy version, and effects planted into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from interp import HookedModel, load
from interp.architectures import architecture
from probes.harness.prompts import PromptSet
from probes.neurons import metrics
from probes.neurons import probe as neurons
from probes.neurons.settings import Site
from probes.neurons.sites import Place, unscaled
from probes.neurons.units import Units
from probes.neurons.weight_errors import WeightErrors, safety_units
from tests.cells import HARMFUL, HARMLESS, Noisy, q8_0

HOOKS = {"resid": "hook_resid_post", "mlp": "mlp.hook_post", "head": "attn.hook_z"}


def slow_ratio(baseline: HookedModel, cell: HookedModel, site: str, layer: int, normalized: bool) -> float:
    """SPEC section 5.4, unit by unit, from activations of one prompt at a time."""

    def read(model: HookedModel, prompts: PromptSet) -> np.ndarray:
        hook = f"blocks.{layer}.{HOOKS[site]}"
        rows = [model.activations([text], [hook])[hook][0].double().numpy() for text in prompts.instructions]
        return np.array(rows).reshape(len(rows), len(rows[0]), -1)

    harmful, harmless, quantized = read(baseline, HARMFUL), read(baseline, HARMLESS), read(cell, HARMFUL)
    n_units = harmful.shape[1]
    contrasts, errors = [], []
    for unit in range(n_units):
        difference = harmful[:, unit].mean(0) - harmless[:, unit].mean(0)
        contrasts.append(np.sqrt(np.sum(difference**2)))
        error = np.mean([np.sqrt(np.sum((q[unit] - b[unit]) ** 2)) for q, b in zip(quantized, harmful, strict=True)])
        deviations = harmless[:, unit] - harmless[:, unit].mean(0)
        spread = np.sqrt(np.sum(deviations**2) / (len(deviations) - 1))
        errors.append(error / spread if normalized else error)
    ranking = np.argsort(contrasts)[::-1]
    safety = ranking[: max(1, int(0.05 * n_units))]
    rest = [unit for unit in range(n_units) if unit not in safety]
    return float(np.mean([errors[u] for u in safety]) / np.mean([errors[u] for u in rest]))


def test_against_the_slow_version(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tiny("llama")
    baseline, cell = load(checkpoint), load(q8_0(checkpoint, tmp_path / "cell.gguf"), like=checkpoint)
    result = neurons.measure(baseline, {"q8": cell}, HARMFUL, HARMLESS, template="none")
    assert result.settings["layers"] == [1, 2]  # of three: round(0.2 · 3), …, round(0.8 · 3)
    assert result.settings["error_prompts"] == [0, 1, 2, 3]
    for site in HOOKS:
        rows = result.table[result.table["site"] == site]
        layers = rows[rows["layer"].notna()]
        for row in layers.itertuples():
            assert row.ratio == pytest.approx(slow_ratio(baseline, cell, site, int(row.layer), False), rel=1e-3)
            assert row.normalized_ratio == pytest.approx(
                slow_ratio(baseline, cell, site, int(row.layer), True), rel=1e-3
            )
        average = rows[rows["layer"].isna()].iloc[0]
        assert average["ratio"] == pytest.approx(layers["ratio"].mean())
        assert average["normalized_ratio"] == pytest.approx(layers["normalized_ratio"].mean())
        assert 0 < average["p"] <= 1
        assert average["verdict"]


def synthetic(error: Callable[[Units, Tensor], Tensor], seed: int = 0) -> pd.Series:
    """Rows of a made-up place: 400 units of very different scale whose contrast grows with their scale."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(400, generator=generator).double().exp()
    contrast = spread * torch.rand(400, generator=generator).double()
    safety = metrics.largest(contrast, metrics.n_safety(400))
    matched = metrics.matched_sets(safety, spread, 1000, generator)
    units = Units(contrast, spread, spread, safety, matched, torch.zeros(1, 400, 1))
    errors = error(units, torch.rand(400, generator=generator).double() + 0.5)
    places = {Place(Site.RESID, layer): units for layer in (0, 1)}
    rows = neurons._rows("cell", Site.RESID, [0, 1], places, dict.fromkeys(places, errors))
    return pd.Series(rows[-1])


def test_error_on_safety_units_is_found() -> None:
    planted = synthetic(lambda units, noise: units.spread * noise * torch.where(units.safety, 5.0, 1.0))
    assert planted["normalized_ratio"] > 4
    assert planted["p"] < 0.01
    assert planted["p_normalized"] < 0.01
    assert planted["verdict"] == "survives both controls"


@pytest.mark.parametrize("seed", range(3))
def test_error_in_proportion_to_scale_goes_away(seed: int) -> None:
    """The study's raw ratio sees an effect where there is only scale; the controls do not."""
    scale_alone = synthetic(lambda units, noise: units.spread * noise, seed)
    assert scale_alone["ratio"] > 2
    assert scale_alone["normalized_ratio"] == pytest.approx(1, abs=0.15)
    assert scale_alone["matched_ratio"] == pytest.approx(scale_alone["ratio"], rel=0.25)
    assert scale_alone["p_normalized"] > 0.05
    assert scale_alone["verdict"].startswith("goes away")


def test_planted_in_a_model(tiny: Callable[[str], Path]) -> None:
    """Noise added to the safety dimensions of a real forward pass, and nowhere else in that layer."""
    baseline = load(tiny("llama"))
    silent = {"same": Noisy(baseline, {})}
    chosen = neurons.measure(baseline, silent, HARMFUL, HARMLESS, sites=[Site.RESID]).units[Place(Site.RESID, 2)].safety
    noise = torch.where(chosen, 0.5, 0.001)
    cell = Noisy(baseline, {"blocks.2.hook_resid_post": lambda resid: resid + noise})
    result = neurons.measure(baseline, {"planted": cell}, HARMFUL, HARMLESS, sites=[Site.RESID])
    last = result.table[result.table["layer"] == 2].iloc[0]
    assert last["ratio"] == pytest.approx(500, rel=1e-2)
    assert last["error_safety"] == pytest.approx(0.5, rel=1e-4)


def test_an_equal_cell_is_undefined_with_a_reason(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    table = neurons.measure(baseline, {"same": Noisy(baseline, {})}, HARMFUL, HARMLESS).table
    assert table["ratio"].isna().all()
    assert table["p"].isna().all()
    assert table["reason"].str.contains("no error").all()


def test_a_cell_that_computes_nan_does_not_stop_the_others(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    cells = {
        "broken": Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid * torch.nan}),
        "works": Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid * 1.01}),
    }
    table = neurons.measure(baseline, cells, HARMFUL, HARMLESS).table
    assert "not finite" in table[table["cell"] == "broken"]["reason"].item()
    assert table[table["cell"] == "works"]["ratio"].notna().all()


def test_no_cell_that_can_be_measured_still_gives_tables(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    cells = {"works": Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid * 1.01})}
    broken = {"broken": Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid * torch.nan})}
    measured, nothing = (neurons.measure(baseline, models, HARMFUL, HARMLESS) for models in (cells, broken))
    assert list(nothing.table) == list(measured.table)
    assert list(measured.table) == list(neurons.TABLE)
    assert nothing.table["layer"].isna().tolist() == [True]
    assert baseline.checkpoint is not None
    assert len(safety_units(nothing, baseline.checkpoint, {}).table.columns) == 12


def test_seed_decides_the_random_sets_and_nothing_else(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    cell = {"c": Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid * 1.01})}
    same, again, other = (neurons.measure(baseline, cell, HARMFUL, HARMLESS, seed=seed).table for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(same, again)
    pd.testing.assert_series_equal(same["ratio"], other["ratio"])
    assert (same["matched_ratio"] != other["matched_ratio"]).any()


def test_error_prompts_cover_a_sorted_set() -> None:
    assert neurons.error_prompts(50) == list(range(50))
    assert neurons.error_prompts(30) == list(range(30))
    categories = [index // 16 for index in range(128)]
    taken = [categories[index] for index in neurons.error_prompts(128)]
    assert len(taken) == len(set(neurons.error_prompts(128))) == 50
    assert {taken.count(category) for category in range(8)} <= {6, 7}


def test_awq_scales_of_shared_heads_are_undone() -> None:
    """Two value heads of three components feed four query heads; each pair shares its value head's factors."""
    z = torch.rand(5, 4, 3)
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    scales = {"model.layers.7.self_attn.v_proj": factors}
    per_head = factors.view(2, 3)[[0, 0, 1, 1]]
    restored = unscaled(z / per_head, Place(Site.HEAD, 7), architecture("llama"), scales)
    torch.testing.assert_close(restored, z)
    assert torch.equal(unscaled(z, Place(Site.HEAD, 6), architecture("llama"), scales), z)
    neuron = torch.rand(5, 6, 1)
    scales = {"model.layers.0.mlp.up_proj": factors}
    restored = unscaled(neuron / factors[:, None], Place(Site.MLP, 0), architecture("llama"), scales)
    torch.testing.assert_close(restored, neuron)


def test_real_awq_activations_come_back(fixtures: Path) -> None:
    """The AWQ fixture's MLP neurons are nearer to the baseline's with the rescaling undone than as they are."""
    baseline, cell = load(fixtures / "fp16"), load(fixtures / "autoawq_gemm")
    options = {"template": "none", "sites": [Site.MLP]}
    undone = neurons.measure(baseline, {"awq": cell}, HARMFUL, HARMLESS, **options).errors["awq"]
    raw = HookedModel(cell.hf, cell.tokenizer, cell.architecture)
    as_is = neurons.measure(baseline, {"awq": raw}, HARMFUL, HARMLESS, **options).errors["awq"]
    for place in undone:
        assert undone[place].mean() < as_is[place].mean()


def test_weight_errors_around_a_unit(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Written and read relative errors from the dense weights, by hand."""
    checkpoint = tiny("llama")
    baseline, cell = load(checkpoint), load(q8_0(checkpoint, tmp_path / "cell.gguf"), like=checkpoint)
    weight, copy = (m.hf.state_dict() for m in (baseline, cell))

    def relative(pieces: list[tuple[str, Any]]) -> float:
        """‖error‖ / ‖weight‖ over slices of several matrices, `block.linear` and an index of each."""
        names = [(f"model.layers.{linear}.weight", index) for linear, index in pieces]
        before = torch.cat([weight[name][index].double().flatten() for name, index in names])
        after = torch.cat([copy[name][index].double().flatten() for name, index in names])
        return float((after - before).norm() / before.norm())

    result = neurons.measure(baseline, {"q8": cell}, HARMFUL, HARMLESS, template="none")
    table = safety_units(result, baseline.checkpoint, {"q8": cell.checkpoint}).table
    every, attention, mlp = slice(None), ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
    readers = [f"self_attn.{name}" for name in attention] + [f"mlp.{name}" for name in mlp]
    for row in table[table["layer"] == 1].itertuples():
        u = row.unit
        if row.site == "resid":
            writes = [(f"{block}.{name}", u) for block in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")]
            reads = [(f"2.{name}", (every, u)) for name in readers]
        elif row.site == "mlp":
            writes = [("1.mlp.gate_proj", u), ("1.mlp.up_proj", u)]
            reads = [("1.mlp.down_proj", (every, u))]
        else:  # four heads of eight components, two to a value head
            writes = [("1.self_attn.v_proj", slice(u // 2 * 8, u // 2 * 8 + 8))]
            reads = [("1.self_attn.o_proj", (every, slice(u * 8, u * 8 + 8)))]
        assert row.write_error == pytest.approx(relative(writes), rel=1e-5)
        assert row.read_error == pytest.approx(relative(reads), rel=1e-5)
    last = table[(table["layer"] == 2) & (table["site"] == "resid")]
    assert last["read_error"].isna().all()
    assert (last["reason"] != "").all()


def test_fused_values_have_no_rows_of_their_own() -> None:
    weights = WeightErrors(architecture("gpt2"), {}, {})
    assert weights.written(Place(Site.HEAD, 0), 4).relative_error().isnan().all()
