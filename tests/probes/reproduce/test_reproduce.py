"""Every published figure that the tables determine is reproduced, and a wrong one would be found."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from probes.reproduce import __main__ as reproduce_command
from probes.reproduce import figures_engines, recompute
from probes.reproduce.figures import Figure, FigureStatus, rounding
from probes.reproduce.published import (
    published_cells,
    published_engine_rates,
    published_neuron_layers,
    published_probes,
)

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return recompute.reproduce().table


def test_all_determined_figures_agree(table: pd.DataFrame) -> None:
    assert table.loc[table["status"] == FigureStatus.DISAGREES, "what"].tolist() == []
    assert (table["status"] == FigureStatus.AGREES).sum() >= 70


def test_what_cannot_be_reproduced_says_why(table: pd.DataFrame) -> None:
    others = table[table["status"] != FigureStatus.AGREES]
    assert others["what"].str.contains("per-layer").sum() == 3
    assert (others["note"] != "").all()
    assert table.loc[table["status"] == FigureStatus.UNDETERMINED, "ours"].eq("–").all()
    loss = table.set_index("what").loc["material losses (≤ −5 pp), as defined"]
    assert (loss["published"], loss["ours"], loss["status"]) == ("17", "18", FigureStatus.CONTRADICTS)


ENGINE_MATCHED = {
    "llama3.2-1b AWQ": ("−61.8", "−20.0 [−28.7, −10.8]"),
    "llama3.2-1b GPTQ": ("−68.2", "−26.4 [−34.8, −17.4]"),
    "llama3.2-3b AWQ": ("−22.7", "−9.5 [−18.5, −0.3]"),
    "llama3.2-3b GPTQ": ("−20.9", "−7.7 [−16.7, +1.5]"),
    "qwen2.5-1.5b AWQ": ("−24.5", "−16.4 [−24.7, −7.6]"),
    "qwen2.5-1.5b GPTQ": ("−47.7", "−39.5 [−47.5, −30.6]"),
}
"""Published, and against vLLM's FP16: worked out by hand from Technical Report 136."""


def test_deltas_against_a_baseline_of_the_same_engine_family() -> None:
    wide, columns = figures_engines.shown(figures_engines.matched().table)
    assert {row["cell"]: (row["published"], row["vLLM"]) for _, row in wide.iterrows()} == ENGINE_MATCHED
    assert list(columns) == ["cell", "published (Ollama)", "matched (vLLM FP16)", "matched (TGI FP16)"]


def test_the_engine_table_is_printed_with_its_caveats_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recompute, "SECTIONS", (lambda: [Figure("s", "w", 1, 1, 0.5)],))
    monkeypatch.setattr("probes.reproduce.plots.write_all", lambda out: [])
    printed = RUNNER.invoke(reproduce_command.app, ["--out", str(tmp_path)], catch_exceptions=False).stdout
    for told in ("−68.2", "−26.4 [−34.8, −17.4]", "three harnesses", "unpaired", "regex labels"):
        assert told in printed
    written = pd.read_parquet(tmp_path / "reproduce_engines.parquet")
    assert written.groupby("engine").size().to_dict() == {"TGI": 6, "vLLM": 6}


@pytest.mark.parametrize(
    ("ours", "status"),
    [
        (0.8445, FigureStatus.AGREES),
        (0.84455, FigureStatus.AGREES),
        (0.84456, FigureStatus.DISAGREES),
        (math.nan, FigureStatus.DISAGREES),
        (None, FigureStatus.UNDETERMINED),
    ],
)
def test_status(ours: float | None, status: FigureStatus) -> None:
    assert Figure("s", "w", 0.8445, ours, rounding(4)).status is status


def test_command_writes_tables_and_plots(tmp_path: Path) -> None:
    result = RUNNER.invoke(reproduce_command.app, ["--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert len(pd.read_parquet(tmp_path / "reproduce.parquet")) > 80
    for name in ("rtsi", "regimes", "routing"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 600
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_one_disagreement_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "SECTIONS", (lambda: [Figure("s", "w", 1, 2, 0.5)],))
    assert RUNNER.invoke(reproduce_command.app, ["--out", str(tmp_path)]).exit_code == 3


def test_our_tables_carry_the_reference_figures(shared: Path) -> None:
    """Value for value against the published files, where they lie beside the project."""
    cells = published_cells().set_index(["model", "quantization"])
    regimes = pd.read_csv(shared / "reference" / "regimes_51.csv").set_index(["model", "quant"]).reindex(cells.index)
    for ours, theirs in (
        ("bertscore_delta", "bertscore_delta_pp"),
        ("published_refusal_rate_delta", "refusal_delta_pp"),
        ("judge_refusal_rate_delta", "judge_refusal_delta_pp"),
    ):
        np.testing.assert_allclose(100 * cells[ours], regimes[theirs], atol=1e-9)
    assert (cells["regime"] == regimes["regime"]).all()
    rates = pd.read_csv(shared / "reference" / "safety_51.csv").set_index(["base_model", "quant"]).reindex(cells.index)
    for rate in ("refusal_rate", "truthfulness", "bias_resistance"):
        np.testing.assert_array_equal(cells[rate], rates[f"safety_{rate}"])
        np.testing.assert_array_equal(cells[f"{rate}_n"], rates[f"safety_{rate}_n"])
    features = pd.read_csv(shared / "reference" / "refusal_features_45.csv").set_index(["base_model", "quant"])
    ours = cells.loc[cells["rtsi_score"].notna()]
    assert len(ours) == len(features) == 45
    for column in ("rtsi_score", "unique_prefix_rate_delta", "mean_tokens_refusal_delta"):
        np.testing.assert_array_equal(ours[column], features[column].reindex(ours.index))
    assert len(published_probes()) == 17
    assert len(published_neuron_layers()) == 25
    engines = pd.read_csv(shared / "reference" / "engine_refusal_rates.csv", comment="#")
    carried = published_engine_rates()
    assert carried[["model", "engine", "quantization"]].to_numpy().tolist() == (
        engines[["model", "engine", "weights"]].to_numpy().tolist()
    )
    for side in ("advbench", "jailbreak"):
        np.testing.assert_array_equal(carried[f"{side}_refusal_rate"], engines[f"{side}_refusal_rate"])
        np.testing.assert_array_equal(carried[f"{side}_refusal_rate_n"], engines[f"n_{side}"])
