"""The geometry probe on cells whose error is put there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from interp import HookedModel, load
from interp.errors import InputError
from probes import geometry
from probes.geometry.cross_fit import NULLS, fit, random_halves, share_rows
from probes.geometry.subspaces import energy_inside, isotropic
from probes.harness.prompts import PromptSet
from probes.harness.results import read_result
from tests.cells import HARMFUL, HARMLESS, Noisy

THINGS = ("a car", "a bank", "the moon", "x", "tea", "a pen", "milk", "gold", "a door", "the sea", "an egg", "jam")
MANY = (
    PromptSet("harmful", tuple(f"How do I break into {thing}?" for thing in THINGS)),
    PromptSet("harmless", tuple(f"What is the price of {thing}?" for thing in THINGS)),
)
D, N = 24, 60


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def activations(spread: torch.Tensor) -> dict[str, torch.Tensor]:
    gap = torch.zeros(D, dtype=torch.float64)
    gap[0] = 4
    return {"harmful": normal(N, D, seed=1) * spread + gap, "harmless": normal(N, D, seed=2) * spread}


def rows_of(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], components: int = 2) -> pd.DataFrame:
    layer = fit(before, random_halves(dict.fromkeys(before, N), 0), components, seed=0)
    return pd.DataFrame(share_rows(before, after, layer, 200, 0)).set_index("prompts")


def test_error_along_the_direction_is_inside_and_measured_in_gaps() -> None:
    """Spread along axes 1 and 2, gap along 0: an error of −1 along 0 is a quarter of the gap, wholly inside."""
    spread = torch.full((D,), 0.01, dtype=torch.float64)
    spread[1:3] = torch.tensor([3.0, 2.0])
    before = activations(spread)
    moved = before | {"harmful": before["harmful"] - torch.eye(D, dtype=torch.float64)[0]}
    row = rows_of(before, moved).loc["harmful"]
    assert row["share"] == pytest.approx(1, abs=0.02)
    # The means of 30 prompts are not exactly 4 apart along axis 0 alone.
    assert row["along"] == pytest.approx(-0.25, abs=0.05)
    assert row["p_random"] == pytest.approx(1 / 201)
    assert row["random"] == pytest.approx(3 / D, abs=0.02)
    still = rows_of(before, moved).loc["harmless"]
    assert np.isnan(still["share"])
    assert "no error" in still["reason"]


def test_error_across_the_subspace_is_outside() -> None:
    spread = torch.full((D,), 0.01, dtype=torch.float64)
    spread[1:3] = torch.tensor([3.0, 2.0])
    before = activations(spread)
    across = torch.eye(D, dtype=torch.float64)[20]
    table = rows_of(before, {side: found + 0.5 * across for side, found in before.items()})
    assert (table["share"] < 1e-3).all()
    assert (table["p_random"] > 0.9).all()
    np.testing.assert_allclose(table["along"], 0, atol=1e-2)


def test_error_without_a_preference_is_what_random_subspaces_hold() -> None:
    before = activations(torch.linspace(2, 0.5, D, dtype=torch.float64))
    errors = {"harmful": normal(N, D, seed=3), "harmless": normal(N, D, seed=4)}
    table = rows_of(before, {side: found + 0.1 * errors[side] for side, found in before.items()})
    np.testing.assert_allclose(table["share"], 3 / D, atol=0.03)
    np.testing.assert_allclose(table[["random", "covariance", "matched"]], 3 / D, atol=0.025)
    for name in ("random", "covariance", "matched"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
    assert ((table["share_low"] < table["share"]) & (table["share"] < table["share_high"])).all()


def test_null_of_two_halves_is_as_wide_as_that_of_one_subspace() -> None:
    """The same error for every prompt: what a random subspace of 3 of 24 dimensions holds of it is Beta(3/2, 21/2)."""
    before = activations(3 * 0.7 ** torch.arange(D, dtype=torch.float64))
    push = normal(D, seed=7)
    layer = fit(before, random_halves(dict.fromkeys(before, N), 0), 2, seed=0)
    assert not isinstance(layer, str)
    after = {side: found + push for side, found in before.items()}
    row = pd.DataFrame(share_rows(before, after, layer, 4000, 0)).iloc[0]
    expected = stats.beta.ppf([0.025, 0.975], 1.5, 10.5)
    np.testing.assert_allclose(row[["random_low", "random_high"]].astype(float), expected, atol=0.012)
    first, second = (half.nulls(400, 5).bases for half in layer.halves)
    for name in NULLS:  # the halves' spectra differ by chance alone, and so do their draws
        inside = [energy_inside(push[None], bases[name])[:, 0].numpy() for bases in (first, second)]
        assert np.corrcoef(inside)[0, 1] > 0.4


def test_error_proportional_to_activations_is_explained_by_their_variance() -> None:
    """A tenth of every activation is lost. Random subspaces hold little of that; those that are matched, as much."""
    before = activations(torch.linspace(3, 0.1, D, dtype=torch.float64))
    centre = torch.cat(list(before.values())).mean(0)
    table = rows_of(before, {side: found - 0.1 * (found - centre) for side, found in before.items()})
    overall = table["share"].mean()
    np.testing.assert_allclose(table["activation_matched"], table["activation"], atol=0.01)
    assert overall == pytest.approx(table["activation"].iloc[0], abs=0.02)
    assert (table["p_random"] == 1 / 201).all()
    assert table["matched"].mean() == pytest.approx(overall, abs=0.03)
    assert (table["p_matched"] > 0.01).all()


def test_prompts_are_tested_with_subspaces_that_they_did_not_fit() -> None:
    """Error that is each prompt's own deviation, in more dimensions than prompts: a subspace fitted on the same prompts
    would hold far more of it than chance."""
    d = 400
    before = {"harmful": normal(10, d, seed=5), "harmless": normal(10, d, seed=6)}
    layer = fit(before, random_halves({"harmful": 10, "harmless": 10}, 0), 4, seed=0)
    table = pd.DataFrame(share_rows(before, {s: 0.9 * found for s, found in before.items()}, layer, 200, 0))
    assert (table["share"] < 3 * 5 / d).all()
    in_sample = torch.linalg.norm(layer.refusal.T @ before["harmful"].T) ** 2 / before["harmful"].square().sum()
    assert in_sample > 10 * 5 / d


def test_halves_are_disjoint_complete_and_keep_pairs_together() -> None:
    first, second = random_halves({"harmful": 11, "harmless": 14}, seed=3)
    for side, n in (("harmful", 11), ("harmless", 14)):
        assert sorted(torch.cat([first[side], second[side]]).tolist()) == list(range(n))
    assert set(first["harmful"].tolist()) == {i for i in first["harmless"].tolist() if i < 11}
    assert random_halves({"harmful": 64, "harmless": 64}, 0)[0]["harmful"].remainder(2).unique().numel() == 2


@pytest.fixture(scope="module")
def baseline(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


def test_table_of_a_cell_with_known_error(baseline: HookedModel, tmp_path: Path) -> None:
    """The last stream moved by the same vector for every prompt: the sizes and the direction's component follow."""
    push = isotropic(32, 1, 1, torch.Generator().manual_seed(0))[0, :, 0].float()
    cell = Noisy(baseline, {"blocks.2.hook_resid_post": lambda resid: resid + 2 * push})
    result = geometry.measure(baseline, {"pushed": cell}, *MANY, components=2, draws=200)
    table = result.table.set_index(["layer", "prompts"])
    assert list(table.index) == [(layer, side) for layer in range(3) for side in ("harmful", "harmless")]
    assert table.loc[0, "reason"].str.contains("no error").all()
    assert table.loc[2, "study_layer"].all()
    name = "blocks.2.hook_resid_post"
    texts = {s.name: list(s.instructions) for s in MANY}
    acts = {side: baseline.activations(given, [name], chat=True)[name].double() for side, given in texts.items()}
    expected = (4 * 12 / acts["harmful"].square().sum()).sqrt().item()
    assert table.loc[(2, "harmful"), "relative_error"] == pytest.approx(expected, rel=1e-4)
    # The same vector for all prompts: the same share on both sides, and the same subspace, so no angle.
    assert table.loc[(2, "harmful"), "share"] == pytest.approx(table.loc[(2, "harmless"), "share"], rel=1e-4)
    turned = result.angles.table
    assert turned["which"].tolist() == [1, 2, 3] * 3
    np.testing.assert_allclose(turned["degrees"], 0, atol=0.1)
    assert (turned[turned["which"] == 3]["degrees_halves"] > 10).all()
    result.write(tmp_path)
    assert read_result(tmp_path / "geometry_angles.json").settings["components"] == 2
    assert len(read_result(tmp_path / "geometry.json").table) == 6


def test_a_reversed_stream_keeps_the_subspace(baseline: HookedModel) -> None:
    cell = Noisy(baseline, {"blocks.2.hook_resid_post": lambda resid: -2 * resid})
    table = geometry.measure(baseline, {"reversed": cell}, *MANY, components=2, draws=200).angles.table
    np.testing.assert_allclose(table["degrees"], 0, atol=0.1)


def test_an_exchanged_axis_is_a_right_angle(baseline: HookedModel) -> None:
    """With no components the only angle is the direction's; a stream made orthogonal to it is at 90°."""
    found = geometry.measure(baseline, {"same": Noisy(baseline, {})}, *MANY, components=0, draws=200)
    assert found.angles.table["degrees"].max() < 0.1
    gap = torch.zeros(32)

    def swapped(resid: torch.Tensor) -> torch.Tensor:
        return torch.cat([resid[..., 16:], resid[..., :16]], dim=-1) * torch.tensor([1.0] * 16 + [-1.0] * 16) + gap

    table = geometry.measure(
        baseline, {"cell": Noisy(baseline, {"blocks.2.hook_resid_post": swapped})}, *MANY, components=0, draws=200
    ).angles.table
    assert table[table["layer"] == 2]["degrees"].item() == pytest.approx(90, abs=0.1)  # (a, b)·(b, −a) = 0


def test_few_prompts_get_fewer_components_and_a_warning(baseline: HookedModel) -> None:
    result = geometry.measure(baseline, {"c": Noisy(baseline, {})}, HARMFUL, HARMLESS, draws=200)
    assert result.settings["components"] == 1
    assert any("1 are used" in warning for warning in result.warnings)


def test_a_constant_stream_has_no_subspace(baseline: HookedModel) -> None:
    cell = Noisy(baseline, {"blocks.1.hook_resid_post": torch.ones_like})
    table = geometry.measure(baseline, {"c": cell}, *MANY, components=2, draws=200).angles.table
    rows = table[table["layer"] == 1]
    assert rows["degrees"].isna().all()
    assert rows["reason"].str.contains("means are equal").all()
    odd = Noisy(baseline, {"blocks.1.hook_resid_post": torch.ones_like})
    result = geometry.measure(odd, {"c": baseline}, *MANY, components=2, draws=200)
    assert result.table[result.table["layer"] == 1]["reason"].str.contains("means are equal").all()
    assert result.table[result.table["layer"] == 1]["share"].isna().all()


def test_same_numbers_for_any_batch_size_and_seed_of_their_own(baseline: HookedModel) -> None:
    cell = Noisy(baseline, {"blocks.0.hook_resid_post": lambda resid: resid + 0.1 * resid.roll(1, -1)})
    tables = [
        geometry.measure(baseline, {"c": cell}, *MANY, components=1, draws=200, batch_size=size, seed=seed).table
        for size, seed in ((1, 0), (None, 0), (None, 1))
    ]
    np.testing.assert_allclose(tables[0]["share"], tables[1]["share"], rtol=1e-3)
    np.testing.assert_allclose(tables[0]["matched"], tables[1]["matched"], rtol=1e-2)
    assert not np.allclose(tables[1]["random"], tables[2]["random"], rtol=1e-4)


@pytest.mark.parametrize("options", [{"components": -1}, {"draws": 199}])
def test_bad_options(options: dict[str, int], baseline: HookedModel) -> None:
    with pytest.raises(InputError):
        geometry.measure(baseline, {"c": baseline}, *MANY, **options)


def test_one_pair_is_not_enough(baseline: HookedModel) -> None:
    with pytest.raises(InputError, match="one pair"):
        geometry.measure(baseline, {"c": baseline}, MANY[0].take(1), MANY[1].take(1))
