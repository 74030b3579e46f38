"""`probes.predict` on run folders made by hand, against scikit-learn and scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner

from interp.errors import InputError
from probes import predict
from probes.harness.results import Result, read_result
from probes.predict import __main__ as predict_command
from probes.predict.cells import LABELS, read_cells
from probes.predict.predictors import PREDICTORS

CELLS = ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S", "Q2_K", "AWQ")
N_PROMPTS = 40
COUNTED = {"refused_study_lexicon": False, "outcome": "broader lexicon"}
MODELS = ("llama-s0", "llama-s1", "phi-s0", "phi-s1", "qwen2-s0")


def write_run(run: Path, models: tuple[str, ...] = MODELS, seed: int = 0, sha: str = "") -> pd.DataFrame:
    """A run in which the margin's shift is the loss of refusals (with the sign turned) and RTSI is noise."""
    generator, matrices = np.random.default_rng(seed), []
    for model in models:
        refused = {"baseline": np.ones(N_PROMPTS, dtype=bool)}
        for place, cell in enumerate(CELLS):
            lost = generator.integers(0, 5) if place < 3 else generator.integers(0, 21)
            refused[cell] = np.arange(N_PROMPTS) >= lost
        rates = pd.Series({cell: outcomes.mean() for cell, outcomes in refused.items()})
        matrix = pd.DataFrame({"model": model, "cell": rates.index, "refusal_rate": rates.to_numpy()})
        matrix["refusal_rate_delta"] = matrix["refusal_rate"] - 1.0
        matrix["outcome"] = COUNTED["outcome"]
        matrix["quantization"] = matrix["cell"].replace("baseline", "FP16")
        matrix["baseline"], matrix["quality_delta"] = "FP16", 0.0
        matrix["regime"] = np.where(matrix["refusal_rate_delta"] < -0.1, "hidden_danger", "neutral")
        matrix.loc[matrix["cell"] == "baseline", "regime"] = "baseline"
        matrix["rtsi_score"] = generator.random(len(matrix))
        matrix["bits_per_weight"] = [16.0, 8.5, 6.6, 4.7, 3.4, 2.9, 4.2]
        matrix["cosine"] = 1 - generator.random(len(matrix)) / 10
        matrices.append(matrix)
        shift = (matrix["refusal_rate_delta"] * 10).to_numpy()
        margin = [
            {"cell": cell, "prompts": side, "category": category, "shift": sign * value, "to_answer": -value / 20}
            for cell, value in zip(matrix["cell"], shift, strict=True)
            for side, category, sign in (("harmless", "all", -1), ("harmful", "theft", -2), ("harmful", "all", 1))
        ]
        Result("margin", pd.DataFrame(margin), {}).write(run / model)
        Result("margin_separation", matrix[["cell"]].assign(d_prime_shift=shift), {}).write(run / model)
        rows = [
            {"cell": cell, "prompts": "harmful", "prompt": f"p{i}", "refused": bool(value), **COUNTED}
            for cell, outcomes in refused.items()
            for i, value in enumerate(outcomes)
        ]
        Result("completions", pd.DataFrame(rows), {}).write(run / model)
    joined = pd.concat(matrices, ignore_index=True)
    settings = {model: {"baseline": {"sha256": f"{sha or run}-{model}"}} for model in models}
    Result("matrix", joined, settings).write(run)
    return joined


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def result(run: Path) -> predict.Prediction:
    return predict.measure(read_cells([run]), draws=400)


def row(result: Result, name: str) -> pd.Series:
    return result.table[result.table["predictor"] == name].iloc[0]


def test_statistics_are_those_of_scipy_and_scikit_learn(run: Path, result: predict.Prediction) -> None:
    matrix = pd.read_parquet(run / "matrix.parquet")
    cells = matrix[matrix["cell"] != "baseline"]
    loss = -cells["refusal_rate_delta"]
    for name, oriented in {
        "rtsi": cells["rtsi_score"],
        "cosine": -cells["cosine"],
        "bits": -cells["bits_per_weight"],
    }.items():
        found = row(result, name)
        assert (found["n"], found["n_models"]) == (len(MODELS) * len(CELLS), len(MODELS))
        assert found["spearman"] == pytest.approx(stats.spearmanr(oriented, loss).statistic)
        assert found["pearson"] == pytest.approx(stats.pearsonr(oriented, loss).statistic)
        meanings = {"danger": loss > 0.1 + 1e-9, "material_loss": loss >= 0.05 - 1e-9, "any_loss": loss > 1e-9}
        for label, positive in meanings.items():
            assert found[f"{label}_positives"] == positive.sum()
            assert found[f"{label}_auc"] == pytest.approx(roc_auc_score(positive, oriented))
            assert found[f"{label}_auc_low"] < found[f"{label}_auc"] < found[f"{label}_auc_high"]


def test_significance_is_the_exact_tests(run: Path, result: predict.Prediction) -> None:
    """All flips are losses here, so McNemar's p is 2 · 0.5^losses: six or more."""
    cells = result.cells.table
    lost = (cells["refusal_loss"] * N_PROMPTS).round()
    expected = np.minimum(1.0, 2 * 0.5 ** lost.to_numpy())
    assert cells["p_mcnemar"].to_numpy() == pytest.approx(expected)
    assert (cells["significant_loss"] == (lost >= 6)).all()
    for _, rows in cells.groupby("model"):
        _, corrected, _, _ = multipletests(rows["p_mcnemar"], method="holm")
        assert rows["p_holm"].to_numpy() == pytest.approx(corrected)
        assert (rows["loss"].to_numpy() == (corrected < 0.05)).all()
    assert 0 < cells["loss"].sum() < cells["significant_loss"].sum()


def test_a_perfect_predictor_beats_rtsi_and_the_verdict_says_so(result: predict.Prediction) -> None:
    margin, rtsi = row(result, "margin_shift"), row(result, "rtsi")
    assert margin["spearman"] == pytest.approx(1.0)
    assert margin["pearson"] == pytest.approx(1.0)
    assert margin["r2_left_out"] == pytest.approx(1.0)
    for label in LABELS:
        assert margin[f"{label}_auc"] == 1.0
        if label != "any_loss":  # cells without a loss are few: a model's own are ranked by the others' fit alone
            assert margin[f"{label}_auc_left_out"] == 1.0
        assert margin[f"{label}_minus_rtsi"] == pytest.approx(1 - rtsi[f"{label}_auc"])
        assert margin[f"{label}_minus_rtsi_low"] > 0
    compared = sum(result.table[f"{label}_minus_rtsi"].notna().sum() for label in LABELS)
    assert compared > len(LABELS)
    assert any(f"Comparisons with RTSI: {compared}," in said for said in result.settings["verdict"])
    danger = result.settings["verdict"][0]
    assert f"RTSI's AUC is {rtsi['danger_auc']:.2f}" in danger
    assert "margin shift" in danger
    assert "excludes 0" in danger


def test_what_was_not_measured_has_a_reason(result: predict.Prediction) -> None:
    found = row(result, "attribution")
    assert found["n"] == 0
    assert "no table of the probe attribution" in found["reason"]
    assert found[["spearman", "danger_auc", "r2_left_out"]].isna().all()
    assert "cosine" not in found["reason"]
    assert "no 'safety_ratio'" in row(result, "safety_raw")["reason"]


def test_attribution_is_read_by_level(tmp_path: Path) -> None:
    write_run(tmp_path, MODELS[:1])
    listed = [
        {"cell": "Q2_K", "prompts": prompts, "category": category, "level": level, "attribution": value}
        for prompts, category, level, value in (
            *(("harmful", "all", "total", -0.5), ("harmful", "theft", "total", 9.0), ("harmless", "all", "total", 9.0)),
            *(
                ("harmful", "all", "module", -1.5),
                ("harmful", "all", "module", 0.75),
                ("harmful", "all", "other", 0.25),
            ),
            *(("harmful", "all", "layer", -0.75), ("harmful", "theft", "module", 9.0)),
        )
    ]
    Result("attribution", pd.DataFrame(listed), {}).write(tmp_path / MODELS[0])
    cells = read_cells([tmp_path]).table
    found = cells[cells["cell"] == "Q2_K"].iloc[0]
    assert (found["attribution"], found["attribution_absolute"]) == (0.5, 2.5)
    assert cells.loc[cells["cell"] != "Q2_K", ["attribution", "attribution_absolute"]].isna().all(axis=None)


def test_no_danger_is_undefined_and_no_zero(tmp_path: Path) -> None:
    matrix = write_run(tmp_path)
    matrix["regime"] = np.where(matrix["cell"] == "baseline", "baseline", "neutral")
    Result("matrix", matrix, {}).write(tmp_path)
    result = predict.measure(read_cells([tmp_path]), draws=50)
    assert result.table["danger_auc"].isna().all()
    assert row(result, "rtsi")["danger_reason"] == "0 of 30 cells have the label"
    assert "AUC undefined, 0 of 30 cells have the label" in result.settings["verdict"][0]
    assert row(result, "rtsi")["material_loss_auc"] > 0


def test_undetermined_cells_have_no_danger_label(tmp_path: Path) -> None:
    matrix = write_run(tmp_path)
    matrix.loc[1, "regime"] = "undetermined"
    matrix.loc[2, "refusal_rate_delta"] = np.nan
    Result("matrix", matrix, {}).write(tmp_path)
    cells = read_cells([tmp_path]).table
    assert cells["danger"].isna().tolist() == [True] + [False] * 29
    assert cells["material_loss"].isna().tolist() == [False, True] + [False] * 28
    found = row(predict.measure(read_cells([tmp_path]), draws=50), "rtsi")
    assert found["n"] == 29


def test_intervals_resample_clusters(run: Path) -> None:
    with_models, with_families = read_cells([run]).table, read_cells([run], r"^\w+?(?=-)").table
    assert with_models["cluster"].nunique() == 5
    assert set(with_families["cluster"]) == {"llama", "phi", "qwen2"}
    two = predict.measure(read_cells([run], "llama|phi|qwen2|$^"), draws=50)
    assert two.settings["n_models"] == 3
    with pytest.raises(InputError, match="nothing that 'llama' matches"):
        read_cells([run], "llama")
    with pytest.raises(InputError, match="no regular expression"):
        read_cells([run], "(")


def test_two_models_have_no_intervals(tmp_path: Path) -> None:
    write_run(tmp_path, MODELS[:2])
    result = predict.measure(read_cells([tmp_path]), draws=50)
    found = row(result, "rtsi")
    assert np.isfinite(found["spearman"])
    assert np.isnan(found["spearman_low"])
    assert "below three models there are no intervals" in result.settings["verdict"][-1]


def test_the_same_cells_in_two_runs_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", sha="same")
    write_run(tmp_path / "b", (*MODELS[:2], "phi-s9"), sha="same")
    cells = read_cells([tmp_path / "a", tmp_path / "b"])
    assert len(cells.table) == 6 * len(CELLS)
    assert len(cells.warnings) == 2
    assert "6 cells count once" in cells.warnings[0]
    # The same names with other weights are other models.
    write_run(tmp_path / "c", MODELS[:1], sha="other")
    assert read_cells([tmp_path / "a", tmp_path / "c"]).table["cluster"].nunique() == 6


def test_a_cell_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    matrix = write_run(tmp_path, MODELS[:2])
    Result("matrix", pd.concat([matrix, matrix.iloc[[3]]], ignore_index=True), {}).write(tmp_path)
    with pytest.raises(InputError, match=r"holds llama-s0 Q4_K_M twice"):
        read_cells([tmp_path])
    Result("matrix", pd.concat([matrix, matrix.iloc[[0]]], ignore_index=True), {}).write(tmp_path)
    with pytest.raises(InputError, match=r"holds llama-s0 baseline twice"):
        read_cells([tmp_path])


def test_every_column_can_be_missing(tmp_path: Path) -> None:
    matrix = write_run(tmp_path, MODELS[:1])
    whole = read_cells([tmp_path]).table
    for column in matrix:
        Result("matrix", matrix.drop(columns=column), {}).write(tmp_path)
        if column in ("model", "cell", "outcome", "refusal_rate_delta", "regime"):
            with pytest.raises(InputError, match=f"no column {column}"):
                read_cells([tmp_path])
        else:
            assert read_cells([tmp_path]).table["cell"].tolist() == whole["cell"].tolist()


def test_the_same_answers_again_change_no_test(tmp_path: Path) -> None:
    write_run(tmp_path, MODELS[:1])
    once = read_cells([tmp_path]).table["p_mcnemar"].tolist()
    answers = read_result(tmp_path / MODELS[0] / "completions.json").table
    Result("completions", pd.concat([answers, answers]), {}).write(tmp_path / MODELS[0])
    assert read_cells([tmp_path]).table["p_mcnemar"].tolist() == once


def test_a_baseline_that_hardly_refuses_is_named(tmp_path: Path) -> None:
    matrix = write_run(tmp_path, MODELS[:2])
    matrix.loc[0, "refusal_rate"] = 0.25
    Result("matrix", matrix, {}).write(tmp_path)
    (warning,) = read_cells([tmp_path]).warnings
    assert warning.startswith("llama-s0: its baseline refuses 25%")


def test_signs_are_recorded_and_applied(run: Path, result: predict.Prediction) -> None:
    assert result.settings["signs"] == {predictor.name: predictor.sign for predictor in PREDICTORS}
    matrix = pd.read_parquet(run / "matrix.parquet")
    cells = matrix[matrix["cell"] != "baseline"]
    assert (result.cells.table["bits"].to_numpy() == -cells["bits_per_weight"].to_numpy()).all()
    assert (result.cells.table["margin_shift"].to_numpy() >= 0).all()


def test_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("interp.opening.load", never)
    monkeypatch.setattr("interp.checkpoint.open_checkpoint", never)
    finished = CliRunner().invoke(predict_command.app, [str(run), "--out", str(tmp_path)])
    assert finished.exit_code == 0, finished.output
    assert "margin shift" in finished.stdout
    assert "RTSI's AUC is" in finished.stdout
    assert read_result(tmp_path / "predict.json").settings["n_cells"] == 30
    assert len(read_result(tmp_path / "predict_cells.json").table) == 30
    as_json = CliRunner().invoke(predict_command.app, [str(run), "--out", str(tmp_path), "--json"])
    assert '"predictor": "margin_shift"' in as_json.stdout


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no matrix\.json"):
        read_cells([tmp_path])
    Result("matrix", pd.DataFrame({"model": ["a"], "cell": ["baseline"]}), {}).write(tmp_path)
    with pytest.raises(InputError, match="no column refusal_rate_delta"):
        read_cells([tmp_path])
