"""The margin–noise law against margins that were made by it, and against scikit-learn, statsmodels and quadrature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.calibration import calibration_curve

from interp import load
from probes.harness.prompts import builtin
from probes.margin import probe as margin
from probes.margin.expected_losses import FITTED_ON, ExpectedLosses, expected_losses
from probes.margin.losses import law_columns
from probes.margin.noise_law import NoiseLaw, calibration_error, halves, reliability, threshold
from tests.cells import HARMFUL, HARMLESS, Noisy


def sides(seed: int, n: int = 128, cut: float = 0.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Margins of a baseline and what it refuses: what lies above `cut`."""
    random = np.random.default_rng(seed)
    margins = {"harmful": random.normal(cut + 2, 1.5, n), "harmless": random.normal(cut - 4, 2, n)}
    return margins, {side: values > cut for side, values in margins.items()}


def moved(margins: dict[str, np.ndarray], shift: float, spread: float, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {side: values + random.normal(shift, spread, len(values)) for side, values in margins.items()}


@given(st.integers(0, 10_000), st.floats(-5, 5), st.sampled_from(FITTED_ON))
def test_a_cell_equal_to_its_baseline_loses_nothing(seed: int, cut: float, fitted_on: str) -> None:
    before, refused = sides(seed, cut=cut)
    expected = expected_losses(before, before, refused, fitted_on)
    total = expected.total()
    assert (total.value, total.low, total.high) == (0.0, 0.0, 0.0)
    assert not expected.crossed.any()
    assert law_columns(expected, NoiseLaw(0.0, 1e-6, 32))["expected_lost"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("fitted_on", FITTED_ON)
@pytest.mark.parametrize(
    ("shift", "spread", "cut"), [(-1.0, 0.5, 0.0), (-0.3, 1.2, -2.6), (-3.0, 1.0, 4.0), (0.0, 0.7, 0.0)]
)
def test_a_planted_shift_is_recovered(shift: float, spread: float, cut: float, fitted_on: str) -> None:
    """Of 60 cells that the law made, the observed losses lie in the interval of most, and sum to what was expected."""
    inside, observed, predicted = 0, 0, 0.0
    for seed in range(60):
        before, refused = sides(seed, cut=cut)
        expected = expected_losses(before, moved(before, shift, spread, seed + 500), refused, fitted_on)
        total, lost = expected.total(), int(expected.crossed.sum())
        inside += total.low <= lost <= total.high
        observed, predicted = observed + lost, predicted + total.value
        assert np.mean([half.law.shift for half in expected.halves]) == pytest.approx(shift, abs=5 * spread / 8)
    assert inside >= 52
    assert predicted == pytest.approx(observed, rel=0.1)


def test_noise_of_random_sign_is_what_the_baselines_own_gives() -> None:
    """A cell that differs from its baseline as the baseline from itself loses nothing beyond that, on average."""
    beyond = []
    for seed in range(40):
        before, refused = sides(seed)
        again = moved(before, 0.0, 0.4, seed + 900)
        noise = NoiseLaw.fitted(again["harmful"] - before["harmful"])
        expected = expected_losses(before, moved(before, 0.0, 0.4, seed + 2000), refused)
        beyond.append(law_columns(expected, noise)["expected_lost"])
    assert abs(np.mean(beyond)) < 3 * np.std(beyond) / np.sqrt(len(beyond)) + 0.1


def test_halves_do_not_see_themselves() -> None:
    """What one half lost is predicted from the other half: a shift of half the prompts comes back for the others."""
    before, refused = sides(3)
    first = halves(128)
    after = {**before, "harmful": before["harmful"] - np.where(first, 100.0, 0.0)}
    expected = expected_losses(before, after, refused)
    shifts = [half.law.shift for half in expected.halves]
    assert shifts == pytest.approx([-100.0, 0.0])
    assert set(expected.halves[0].prompts) <= set(np.flatnonzero(~first))
    assert set(expected.halves[1].prompts) <= set(np.flatnonzero(first))


@given(st.floats(-4, 4), st.floats(0.05, 3), st.floats(0.01, 6))
def test_probability_is_the_integral_of_the_density(shift: float, spread: float, distance: float) -> None:
    law = NoiseLaw(shift, spread, 30)
    density = stats.norm(distance + shift, spread).pdf
    lowest = distance + shift - 12 * spread
    area = integrate.quad(density, lowest, 0.0, points=[min(distance + shift, 0.0)])[0] if lowest < 0 else 0.0
    assert law.lost(np.array([distance]))[0] == pytest.approx(area, abs=1e-6)


def test_without_spread_prompts_cross_or_do_not() -> None:
    assert NoiseLaw(-1.0, 0.0, 9).lost(np.array([0.5, 1.0, 1.5])).tolist() == [1.0, 1.0, 0.0]


def test_threshold_of_kinds_that_lie_apart() -> None:
    refused = np.array([True, True, False, False])
    assert threshold(np.array([3.0, 1.0, -1.0, -2.0]), refused) == 0.0
    assert threshold(np.array([-1.0, -1.5, -2.5, -9.0]), refused) == -2.0
    assert threshold(np.array([3.0, 1.0, 4.0, 2.0]), np.ones(4, dtype=bool)) == 0.0


def test_threshold_of_kinds_that_overlap_is_the_probits() -> None:
    random = np.random.default_rng(1)
    margins = random.normal(-3, 2, 300)
    refused = margins + random.normal(0, 1, 300) > -2.6
    fit = sm.Probit(refused.astype(float), sm.add_constant(margins)).fit(disp=0)
    assert threshold(margins, refused) == pytest.approx(-fit.params[0] / fit.params[1], abs=1e-3)
    assert np.isnan(threshold(margins, ~refused))


def test_reliability_against_scikit_learns() -> None:
    random = np.random.default_rng(0)
    predicted = random.uniform(0, 1, 400)
    lost = random.uniform(0, 1, 400) < predicted**2
    curve = reliability(predicted, lost)
    shares, means = calibration_curve(lost, predicted, n_bins=10)
    assert [part.observed for part in curve] == pytest.approx(shares.tolist())
    assert [part.predicted for part in curve] == pytest.approx(means.tolist())
    weights = np.histogram(predicted, 10, (0, 1))[0] / 400
    assert calibration_error(curve) == pytest.approx((weights * abs(shares - means)).sum())
    assert reliability(np.array([1.0]), np.array([True]))[0].low == 0.9


@pytest.mark.parametrize(("refuses", "reason"), [(0, "refuses none"), (1, "fewer than 2 prompts in a half"), (128, "")])
def test_reasons(refuses: int, reason: str) -> None:
    before, refused = sides(0, cut=-50.0)
    refused = {"harmful": np.arange(128) < refuses, "harmless": np.zeros(128, dtype=bool)}
    before["harmless"] = np.full(128, -60.0)
    expected: ExpectedLosses = expected_losses(before, moved(before, 0, 1, 1), refused)
    assert (reason in expected.reason) if reason else expected.reason == ""
    assert np.isnan(expected.total().value) == bool(reason)


def test_tables_of_a_cell_whose_answers_are_asked_for(organism: Path) -> None:
    """A cell whose last residual stream is turned around refuses nothing: its answers say so."""
    baseline = load(organism)
    cells = {
        "same": Noisy(baseline, {}),
        "broken": Noisy(baseline, {f"blocks.{baseline.n_layers - 1}.hook_resid_post": lambda resid: -resid}),
    }
    result = margin.measure(baseline, cells, builtin("harmful").take(32), builtin("harmless").take(32), answers=True)
    table = result.losses.table.set_index(["cell", "fitted_on"])
    for fitted_on in FITTED_ON:
        same, broken = table.loc[("same", fitted_on)], table.loc[("broken", fitted_on)]
        assert (same["observed_by"], same["lost"]) == ("answers", 0)
        assert same["expected_lost"] == pytest.approx(0, abs=1e-3)
        assert broken["lost"] == broken["n"] > 10
    curve = result.reliability.table
    assert (curve[curve["cell"] == "same"]["predicted"] == 0).all()
    assert curve.groupby(["cell", "fitted_on"])["n"].sum().eq(table["n"]).all()


def test_a_model_that_refuses_nothing_has_reasons(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    result = margin.measure(baseline, {"cell": Noisy(baseline, {})}, HARMFUL, HARMLESS)
    for table in (result.losses.table, result.reliability.table):
        assert table["cell"].tolist() == ["baseline", "baseline", "cell", "cell"]
        assert table["reason"].str.contains("refuses none").all()
    assert pd.isna(result.losses.table["lost"]).all()
