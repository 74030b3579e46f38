"""Statistics against hand computation, published figures and the libraries' own answers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from interp.errors import InputError
from probes.judges.agreement import agreement, regime_changes, sampling_plan
from probes.matrix.cells import is_baseline
from probes.reproduce.figures_regimes import study_matrix
from probes.reproduce.published import published_probes
from probes.stats.correlations import (
    against_danger,
    against_outcomes,
    asymmetry,
    correlate,
    cross_correlations,
    leave_one_out,
    mann_whitney,
    mixed_effects,
    pairings,
    ratio_above_one,
    regress,
    repeated_measures,
    sign_reversal,
    within_groups,
)
from probes.stats.intervals import wilson
from probes.stats.paired_tests import holm, mcnemar_p, minimum_detectable_effect, paired_tests

LABELS = st.lists(st.sampled_from("abc"), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    matrix = study_matrix()
    return matrix[~is_baseline(matrix)]


@pytest.fixture(scope="module")
def simulated() -> pd.DataFrame:
    """Slope 2 within each of six models, and intercepts that turn it round when pooled."""
    generator = np.random.default_rng(0)
    model = np.repeat(np.arange(6), 20)
    x = model + generator.normal(size=120) * 0.3
    y = 2 * x - 5 * model + generator.normal(size=120) * 0.05
    return pd.DataFrame({"model": model.astype(str), "x": x, "y": y})


def test_wilson_of_ten_in_ten() -> None:
    assert wilson(10, 10)[1:3] == pytest.approx((0.7225, 1.0), abs=5e-5)
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError):
            wilson(successes, n)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8))
@settings(max_examples=25)  # statsmodels collects garbage at every call
def test_mcnemar_and_holm_are_scipys_and_statsmodels(flips: list[tuple[int, int]]) -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = pd.Series([mcnemar_p(*counts) for counts in flips])
    binomial = [stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0 for lost, gained in flips]
    assert p_values.to_numpy() == pytest.approx(binomial)
    assert holm(p_values).tolist() == multipletests(p_values.to_numpy(), method="holm")[1].tolist()


def test_paired_tests_by_hand() -> None:
    baseline = np.array([True] * 20 + [False] * 10)
    cell = np.array([True] * 10 + [False] * 10 + [True] + [False] * 9)
    table = paired_tests(baseline, {"x": cell, "same": baseline}).set_index("cell")
    assert table.loc["x", ["n", "flips_gained", "flips_lost"]].tolist() == [30, 1, 10]
    assert table.loc["x", "delta"] == pytest.approx(-0.3)
    assert table.loc["x", "p"] == pytest.approx(stats.binomtest(1, 11).pvalue)
    assert table.loc["x", "p_holm"] == pytest.approx(2 * stats.binomtest(1, 11).pvalue)
    assert table.loc["same", "p_holm"] == 1.0
    # Without a flip: the smallest share that gives six of thirty, the exact test's fewest, with 80 % power.
    assert stats.binom.sf(5, 30, table.loc["same", "detectable"]) == pytest.approx(0.8)
    assert stats.binomtest(0, 6).pvalue < 0.05 < stats.binomtest(0, 5).pvalue
    with pytest.raises(InputError):
        paired_tests(baseline, {"x": cell[:3]})


def test_detectable_effect_has_the_asked_power() -> None:
    n, discordant = 400, 0.2
    effect = minimum_detectable_effect(n, discordant)
    counts = np.random.default_rng(0).multinomial(
        n, [(discordant + effect) / 2, (discordant - effect) / 2, 1 - discordant], size=4000
    )
    b, c = counts[:, 0], counts[:, 1]
    found = np.abs(b - c) / np.sqrt(b + c) > stats.norm.ppf(0.975)
    assert found.mean() == pytest.approx(0.8, abs=0.03)


@given(st.integers(1, 2000), st.floats(0, 1))
@pytest.mark.filterwarnings("error")
def test_detectable_effect_is_a_rate_wherever_anything_can_be_significant(n: int, discordant: float) -> None:
    effect = minimum_detectable_effect(n, discordant)
    assert math.isnan(effect) if n < 6 else 0 < effect < 1


def test_published_within_model_correlations(rows: pd.DataFrame) -> None:
    within = within_groups(rows, "quality_delta", "published_refusal_rate_delta").set_index("model")["coefficient"]
    published = {"llama3.2-1b": -0.275, "llama3.2-3b": -0.461, "phi-2": -0.694, "qwen2.5-1.5b": 0.935}
    for model, value in published.items():
        assert within[model] == pytest.approx(value, abs=5e-4)
    assert within["qwen2.5-7b"] == pytest.approx(-0.61, abs=5e-3)
    assert sign_reversal(within)


def test_asymmetry_of_the_study(rows: pd.DataFrame) -> None:
    ratio = asymmetry(rows["quality_delta"], rows["refusal_rate_delta"])
    assert (ratio.notna().sum(), (ratio > 1).sum()) == (43, 35)
    assert asymmetry(pd.Series([0.0, 0.0]), pd.Series([0.1, 0.0])).tolist()[0] == math.inf
    assert math.isnan(asymmetry(pd.Series([0.0]), pd.Series([0.0]))[0])


def test_the_slope_within_models_is_recovered(simulated: pd.DataFrame) -> None:
    assert correlate(simulated["x"], simulated["y"]).coefficient < -0.9
    repeated = repeated_measures(simulated, "x", "y")
    assert repeated.coefficient > 0.99
    mixed = mixed_effects(simulated, "x", "y")
    assert mixed.slope == pytest.approx(2, abs=0.05)
    assert mixed.low < 2 < mixed.high
    assert mixed.converged is True


def test_repeated_measures_is_the_correlation_of_centred_values(simulated: pd.DataFrame) -> None:
    centred = simulated[["x", "y"]] - simulated.groupby("model")[["x", "y"]].transform("mean")
    expected = stats.pearsonr(centred["x"], centred["y"]).statistic
    assert repeated_measures(simulated, "x", "y").coefficient == pytest.approx(expected)


def test_regression_is_scipys(simulated: pd.DataFrame) -> None:
    expected = stats.linregress(simulated["x"], simulated["y"])
    found = regress(simulated, "x", "y")
    assert (found.slope, found.p) == pytest.approx((expected.slope, expected.pvalue))
    assert found.converged is None


def test_leave_one_out_drops_each_value(simulated: pd.DataFrame) -> None:
    table = leave_one_out(simulated, "x", "y", "model").set_index("left_out")
    kept = simulated[simulated["model"] != "3"]
    assert table.loc["3", "coefficient"] == pytest.approx(stats.pearsonr(kept["x"], kept["y"]).statistic)
    assert table["n"].tolist() == [100] * 6
    with pytest.raises(InputError):
        leave_one_out(simulated, "x", "y", "format")


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 1, 1, 1], [1, 2, 3, 4], "the first column is constant"),
        ([1, 2, 3, 4], [0.1 + 0.2, 0.3, 0.3, 0.3], "the second column is constant"),
        ([1, 2, math.nan, math.nan], [1, 2, 3, 4], "fewer than 3 points"),
    ],
)
def test_degenerate_columns_give_nan_and_a_reason(x: list[float], y: list[float], reason: str) -> None:
    table = pd.DataFrame({"model": list("aabb"), "quantization": list("pqpq"), "x": x, "y": y}, dtype=None)
    for method in ("pearson", "spearman"):
        found = correlate(table["x"], table["y"], method)
        assert math.isnan(found.coefficient)
        assert found.reason == reason
    for result in (mixed_effects(table, "x", "y"), regress(table, "x", "y")):
        assert math.isnan(result.slope)
        assert result.reason == reason
    assert repeated_measures(table, "x", "y").reason
    assert reason in pairings(table, ["x"], ["y"]).loc[0, "reason"]


def test_a_single_group_has_no_mixed_model() -> None:
    table = pd.DataFrame({"model": "a", "x": [1.0, 2, 3], "y": [1.0, 2, 4]})
    assert mixed_effects(table, "x", "y").reason == "fewer than two groups"
    assert repeated_measures(table, "x", "y").reason == "fewer than two groups with two points each"


def test_pairings_are_all_pairs(rows: pd.DataFrame) -> None:
    deltas = ["refusal_rate_delta", "judge_refusal_rate_delta", "truthfulness_delta", "bias_resistance_delta"]
    table = pairings(rows, ["quality_delta"], deltas)
    assert table["safety"].tolist() == deltas
    assert table.loc[0, "n"] == 43
    assert table.loc[0, "sign_reversal_pearson"]
    assert (
        table.loc[0, "without_one_model_min"] <= table.loc[0, "pooled_pearson"] <= table.loc[0, "without_one_model_max"]
    )


# --- agreement


@given(LABELS)
def test_identical_labels_agree_perfectly(labels: list[str]) -> None:
    found = agreement(labels, labels, draws=20)
    assert (found.agreement, found.kappa.value) == (1.0, 1.0)


@given(LABELS, st.randoms())
def test_agreement_is_symmetric_and_ignores_order(labels: list[str], random: object) -> None:
    pairs = list(zip(labels, labels[::-1], strict=True))
    found = agreement(*map(list, zip(*pairs, strict=True)), draws=5)
    random.shuffle(pairs)  # type: ignore[attr-defined]
    other = agreement([b for _, b in pairs], [a for a, _ in pairs], draws=5)
    np.testing.assert_allclose([found.kappa.value, found.agreement], [other.kappa.value, other.agreement])
    assert (found.confusion.to_numpy() == other.confusion.to_numpy().T).all()


def test_kappa_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, expected 0.5.
    first, second = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = agreement(first, second)
    assert found.kappa.value == pytest.approx(0.4)
    assert found.confusion.loc[1, 0] == 5
    # Fleiss, Cohen and Everitt (1969): standard error about 0.127 here.
    assert found.kappa[1:3] == pytest.approx((0.4 - 1.96 * 0.127, 0.4 + 1.96 * 0.127), abs=0.03)


def test_agreement_without_variation_or_items() -> None:
    assert math.isnan(agreement([1, 1], [0, 0]).kappa.value)
    for first, second in (([], []), ([1], [1, 2]), ([None], [1])):
        with pytest.raises(InputError):
            agreement(first, second)


def test_regimes_that_change_with_the_labeller() -> None:
    matrix = study_matrix()
    changed = regime_changes(matrix, matrix["judge_refusal_rate_delta"])
    names = (changed["model"] + " " + changed["quantization"]).tolist()
    assert "llama3.2-1b Q3_K_S" in names  # −13.6 pp by regex, −3.6 pp by judge
    assert "phi-2 GPTQ" not in names  # beyond −10 pp by both
    assert regime_changes(matrix, matrix["refusal_rate_delta"]).empty


def test_sampling_plan() -> None:
    items = pd.DataFrame(
        {
            "model": "m",
            "quantization": np.repeat(["FP16", "AWQ", "Q4_K_M", "Q2_K"], [30, 30, 30, 4]),
            "regime": np.repeat(["baseline", "hidden_danger", "neutral", "neutral"], [30, 30, 30, 4]),
        }
    )
    plan = sampling_plan(items, 10, seed=3)
    assert plan["quantization"].value_counts().to_dict() == {"FP16": 30, "AWQ": 30, "Q4_K_M": 10, "Q2_K": 4}
    assert plan.groupby("quantization")["weight"].sum().to_dict() == {"FP16": 30, "AWQ": 30, "Q4_K_M": 30, "Q2_K": 4}
    pd.testing.assert_frame_equal(plan, sampling_plan(items, 10, seed=3))
    assert not plan.index.equals(sampling_plan(items, 10, seed=4).index)
    with pytest.raises(InputError):
        sampling_plan(items, 0)


# --- probe against outcome


def test_published_ratio_test() -> None:
    found = ratio_above_one(published_probes()["safety_ratio"])
    assert found.n == 11
    assert found.p == pytest.approx(4.4e-7, abs=5e-9)
    assert ratio_above_one(pd.Series([1.0, 1.0])).reason


def test_against_outcomes_and_danger(simulated: pd.DataFrame) -> None:
    table = simulated.assign(danger=simulated["y"] > simulated["y"].median(), noise=np.arange(120) % 7)
    correlations = against_outcomes(table, ["x"], ["y"], draws=100)
    assert correlations["coefficient"].tolist() == pytest.approx(
        [stats.pearsonr(table["x"], table["y"]).statistic, stats.spearmanr(table["x"], table["y"]).statistic]
    )
    assert (correlations["low"] < correlations["high"]).all()
    separated = against_danger(table, ["y", "noise"], draws=100).set_index("metric")
    assert separated.loc["y", "auc"] == 1.0
    assert separated.loc["noise", "p"] > 0.05
    inside, outside = table.loc[table["danger"], "x"], table.loc[~table["danger"], "x"]
    expected = stats.mannwhitneyu(inside, outside)
    assert mann_whitney(table["x"], table["danger"])[:2] == pytest.approx((expected.statistic, expected.pvalue))
    assert mann_whitney(table["x"], table["danger"] & False).reason == "danger or rest has no rows"


def test_cross_correlations_are_pandas(simulated: pd.DataFrame) -> None:
    expected = simulated[["x", "y"]].corr().to_numpy()
    np.testing.assert_allclose(cross_correlations(simulated, ["x", "y"]), expected)
    with pytest.raises(InputError):
        cross_correlations(simulated, ["x", "z"])
