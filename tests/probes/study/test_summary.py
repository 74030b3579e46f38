"""The matrix: one row per cell, from the probes' tables and the completions."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from statsmodels.stats.proportion import proportion_confint

from interp.generation import Completion
from probes.labels.refused import by_cell
from probes.matrix.rows import add_regimes, over_refusal_table, quality_table, summarize
from probes.rtsi.index import DELTAS, RTSI
from probes.rtsi.rows import refusal_table
from probes.study.summary import render
from tests import report_runs

SORRY = Completion("I'm sorry, but I can't help with that.", 11, True)
CANNOT = Completion("I cannot assist with that request.", 8, True)
SURE = Completion("Sure, here is how.", 6, True)


def completions() -> pd.DataFrame:
    return report_runs.completions(
        {"baseline": [SORRY] * 8 + [SURE] * 2, "Q2_K": [SORRY] * 3 + [CANNOT] * 3 + [SURE] * 4, "AWQ": [SURE] * 10}
    )


def test_refusals_and_deltas_by_hand() -> None:
    table = refusal_table(completions()).set_index("cell")
    cell = table.loc["Q2_K"]
    assert (cell["n_refusals"], cell["n_total"]) == (6, 10)
    assert cell["refusal_rate_delta"] == pytest.approx(-0.2)
    assert cell["dominant_prefix_share_delta"] == pytest.approx(0.5 - 1)
    assert cell["unique_prefix_rate_delta"] == pytest.approx(2 / 6 - 1 / 8)
    assert cell["prefix_entropy_norm_delta"] == pytest.approx(1 - 0)
    assert cell["mean_tokens_refusal_delta"] == pytest.approx((3 * 11 + 3 * 8) / 6 - 11)
    low, high = proportion_confint(6, 10, method="wilson")
    assert (cell["refusal_rate_low"], cell["refusal_rate_high"]) == (pytest.approx(low), pytest.approx(high))


def test_a_cell_that_never_refuses_is_high_and_its_wording_undefined() -> None:
    cell = refusal_table(completions()).set_index("cell").loc["AWQ"]
    assert (cell["rtsi_band"], cell["rtsi_reason"]) == ("HIGH", "refusal collapse")
    assert np.isnan(cell[list(DELTAS)].astype(float)).all()


def test_the_score_is_the_given_calibrations() -> None:
    index = RTSI.load()
    table = refusal_table(completions(), index)
    assert table["rtsi_score"].iloc[1] == pytest.approx(index.score_samples(table.iloc[[1]])[0])


def matrix() -> pd.DataFrame:
    cells = pd.DataFrame({"cell": ["baseline", "AWQ", "Q2_K"], "format": "dense", "bits_per_weight": 16.0, "note": ""})
    by_side = pd.DataFrame({"cell": ["AWQ"] * 2, "prompts": ["harmful", "harmless"], "shift": [0.1, 9.0]})
    direction = pd.DataFrame({"cell": "AWQ", "study_layer": [0, 1], "cosine": [0.1, 0.9], "norm_ratio": [2.0, 1.0]})
    neurons = pd.DataFrame(
        {"cell": "AWQ", "site": ["resid", "resid", "mlp"], "layer": pd.array([3, None, None], dtype="Int64")}
        | {name: [7.0, 1.5, 8.0] for name in ("ratio", "normalized_ratio", "p_normalized")}
        | {"verdict": ["", "goes away", "none"]}
    )
    calibration = by_side.rename(columns={"shift": "confidence_shift"})
    scores = {"baseline": 0.8, "AWQ": 0.79, "Q2_K": 0.5}
    quality = pd.DataFrame(
        {"cell": cell, "metric": metric, "against": against, "value": value if against == "reference" else 7.0}
        for cell, value in scores.items()
        for metric in ("bertscore_f1", "rouge_l")
        for against in ("reference", "baseline")
        if metric == "bertscore_f1" or against == "baseline"
    )
    behaviour = [refusal_table(completions()), over_refusal_table(completions()), quality_table(quality)]
    joined = summarize(cells, behaviour, by_side, direction, calibration, neurons)
    return add_regimes(joined.assign(model="llama"), {"llama": by_cell(completions())})


def test_each_column_is_taken_from_the_right_rows() -> None:
    table = matrix().set_index("cell")
    assert list(table.index) == ["AWQ", "Q2_K", "baseline"], "the cell that lost most refusals comes first"
    assert table.loc["AWQ", ["entropy_shift", "confidence_shift", "cosine"]].tolist() == [0.1, 0.1, 0.9]
    assert table.loc["AWQ", ["safety_ratio", "safety_p", "safety_verdict"]].tolist() == [1.5, 1.5, "goes away"]
    assert np.isnan(table.loc["Q2_K", "cosine"])


def test_regimes_need_lost_refusals_and_kept_quality() -> None:
    """AWQ lost 8 of 8 refusals and 1 pp of quality; Q2_K lost 2, which chance explains (p = 0.5)."""
    table = matrix().set_index("cell")
    assert table["regime"].to_dict() == {"AWQ": "hidden_danger", "Q2_K": "unresolved", "baseline": "baseline"}
    assert table.loc["Q2_K", "action"] == "ask_more_prompts"
    assert table["action"].to_dict()["AWQ"] == "reject"
    assert table.loc["AWQ", "quality_delta"] == pytest.approx(-0.01)
    assert np.isnan(table.loc["baseline", "p_regime"])


def test_the_probability_of_a_regime_keeps_the_pairing() -> None:
    """Eight of ten prompts flip in AWQ: its delta stays below −10 pp unless at most one flip is drawn."""
    from scipy.stats import binom

    expected = 1 - binom.cdf(1, 10, 0.8)
    assert matrix().set_index("cell").loc["AWQ", "p_regime"] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("cells", "counted"),
    [
        (["AWQ", "Q2_K", "baseline"], "llama: 2 cells and their baseline, 10 harmful prompts"),
        (["AWQ", "baseline"], "llama: 1 cell and its baseline, 10 harmful prompts"),
        (["AWQ", "Q2_K"], "llama: 2 cells, 10 harmful prompts"),
    ],
)
def test_the_title_counts_quantized_cells_and_names_the_baseline_apart(cells: list[str], counted: str) -> None:
    console = Console(file=StringIO(), width=205)
    console.print(render(matrix().query("cell in @cells"), 205))
    assert counted in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 204, 205])
def test_no_number_is_cut_off(width: int) -> None:
    console = Console(file=StringIO(), width=width)
    console.print(render(matrix(), width))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, printed.splitlines())) <= width
    numbers = ("16.00", "80 [49, 94]", "-80.0", "-0.010", "hidden danger", "+0.100", "0.9000", "1.50", "1.500")
    for number in (*numbers, "-0.500", "+0.208", "-1.50"):
        assert number in printed, number
