"""The explanations that compete: each fits where its cause was put, and is not measured where nobody looked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp import load
from interp.model import HookedModel
from probes import Cells, depth, reversion, why
from probes.harness.results import Result
from probes.stats.intervals import Estimate
from probes.why.doubt import Doubt, doubt_of
from probes.why.keep_list import NO_CHOICE, KeepList
from probes.why.margin_shift import MarginShift
from probes.why.rivals import FITS, NOT, UNMEASURED, measured_beside, rivals
from tests.attributed import OPENINGS
from tests.cells import HARMFUL, HARMLESS, q8_0

NOTHING_KEPT = KeepList(NO_CHOICE, False, 4.0, [], 4.0, [], 4.0, {})
SURE = Doubt(1e-6, Estimate(-2.0, -2.5, -1.5))


def shift(value: float, half: float = 0.1) -> MarginShift:
    moved = Estimate(value, value - half, value + half)
    return MarginShift(64, Estimate(3.0), Estimate(3.0 + value), moved, moved, 5, 0)


def verdicts(
    margin: MarginShift, doubt: Doubt = SURE, stored_as: str = "gptq", **rows: dict[str, Any]
) -> dict[str, str]:
    beside = {name: pd.DataFrame([row]) for name, row in rows.items()}
    return {rival.explanation: rival.verdict for rival in rivals(margin, NOTHING_KEPT, doubt, beside, stored_as)}


def bounded(name: str, value: float, half: float = 0.01) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


ARTEFACT = "it is the measurement"


def test_nothing_but_the_measurement_is_known_without_other_probes() -> None:
    found = verdicts(shift(-2))
    assert found.pop(ARTEFACT) == NOT
    assert found.pop("a few linears did it") == NOT
    assert len(found) == 4
    assert set(found.values()) == {UNMEASURED}


@pytest.mark.parametrize(
    ("margin", "doubt"),
    [
        (shift(-0.05), SURE),
        (shift(-2), Doubt(1.5, SURE.other_words)),
        (shift(-2), Doubt(1e-6, Estimate(-0.1, -0.4, 0.2))),
        (shift(2), SURE),
    ],
    ids=["within chance", "noisy baseline", "other words did not move", "other words moved the other way"],
)
def test_it_is_the_measurement(margin: MarginShift, doubt: Doubt) -> None:
    assert verdicts(margin, doubt)[ARTEFACT] == FITS


@pytest.mark.parametrize(("back", "p", "verdict"), [(1.0, 0.05, FITS), (0.02, 0.05, NOT), (1.0, 0.5, NOT)])
def test_reversion_fits_beyond_random_signs_and_half_of_the_way(back: float, p: float, verdict: str) -> None:
    row = {"of": "logits", "prompts": "harmful", "p": p, "reason": ""} | bounded("back", back) | bounded("random", 0.02)
    assert verdicts(shift(-2), reversion=row)["quantization undid alignment"] == verdict


@pytest.mark.parametrize(
    ("beyond", "harmless", "stored_as", "verdict"),
    [(1.10, 0.95, "gptq", FITS), (1.10, 1.10, "gptq", NOT), (0.95, 0.90, "awq", NOT), (1.15, 1.0, "gguf", NOT)],
)
def test_coverage_fits_writers_that_calibrate(beyond: float, harmless: float, stored_as: str, verdict: str) -> None:
    row = {"linear": "all", "reason": ""} | bounded("beyond", beyond) | bounded("harmless", harmless)
    assert verdicts(shift(-2), stored_as=stored_as, coverage=row)["harmful prompts are not covered"] == verdict


@pytest.mark.parametrize(("lost", "verdict"), [(5, FITS), (40, NOT), (0, NOT)])
def test_noise_fits_where_harmless_margins_expect_the_losses(lost: int, verdict: str) -> None:
    row = {"fitted_on": "harmless", "by_noise": 0.0, "n": 60, "lost": lost, "reason": ""}
    found = verdicts(shift(-2), margin_losses=row | bounded("expected_lost", 6, 3))
    assert found["noise that hits all prompts alike"] == verdict


def test_depth_fits_where_only_later_tokens_fell() -> None:
    row = {"position": 3, "reason": ""} | bounded("first", 0) | bounded("later", -2)
    for verdict, expected in (
        ("the first token holds, later ones do not", FITS),
        ("the first token fell, and later ones", NOT),
    ):
        found = verdicts(shift(-2), depth_cells=row | {"verdict": verdict})
        assert found["it refuses at first and answers later"] == expected


@pytest.mark.parametrize(
    ("table", "explanation", "row"),
    [
        (
            "margin_losses",
            "noise that hits all prompts alike",
            {"fitted_on": "harmless", "lost": pd.NA},
        ),
        ("reversion", "quantization undid alignment", {"of": "logits", "prompts": "harmful"}),
        ("coverage", "harmful prompts are not covered", {"linear": "all"}),
        ("depth_cells", "it refuses at first and answers later", {"position": pd.NA}),
    ],
)
def test_a_number_that_is_missing_is_no_verdict(table: str, explanation: str, row: dict[str, Any]) -> None:
    beside = {table: pd.DataFrame([row | {"reason": "too few prompts"}])}
    [found] = [r for r in rivals(shift(-2), NOTHING_KEPT, SURE, beside, "awq") if r.explanation == explanation]
    assert found.verdict == UNMEASURED
    assert "too few prompts" in found.why


def test_the_verdict_that_is_looked_for_is_the_one_depth_gives() -> None:
    from probes.depth.probe import LATER
    from probes.why import rivals as module

    assert module.LATER == LATER


def test_the_baseline_beside_itself_moves_nothing(tiny: Callable[[str], Path]) -> None:
    baseline, same = load(tiny("llama")), load(tiny("llama"))
    doubt = doubt_of(baseline, same, list(HARMFUL.instructions), OPENINGS)
    assert doubt.again < 1e-4
    assert doubt.other_words.value == 0


def test_results_are_found_by_hash_and_no_others(tmp_path: Path) -> None:
    def written(cell: str, sha256: str) -> None:
        settings = {"baseline": {"sha256": "b"}, "cells": {cell: {"sha256": sha256}}}
        Result("reversion", pd.DataFrame([{"cell": cell, "reason": ""}]), settings).write(tmp_path)

    written("other name", "c")
    assert measured_beside(tmp_path, "b", "c")["reversion"]["cell"].tolist() == ["other name"]
    assert not measured_beside(tmp_path, "b", "another cell")
    assert not measured_beside(tmp_path, "another baseline", "c")
    assert not measured_beside(None, "b", "c")
    (tmp_path / "reversion.parquet").write_bytes(b"damaged")
    assert not measured_beside(tmp_path, "b", "c")


def test_the_table_and_the_page_say_it(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A cell that is nearly its baseline: reversion and depth are read from their files, the rest is not measured."""
    baseline = load(tiny("llama"))
    cells = Cells({"q8": q8_0(tiny("llama"), tmp_path / "q8.gguf")}, baseline)
    before: HookedModel = load(tiny("llama"))
    for parameter in before.hf.parameters():
        parameter.data *= 1.1
    reversion.measure(baseline, cells, HARMFUL, HARMLESS, before=before, draws=1).write(tmp_path)
    depth.measure(baseline, cells, HARMFUL, HARMLESS, positions=2, openings="lexicon").write(tmp_path)
    result = why.measure(baseline, cells, HARMFUL, HARMLESS, draws=1, prompts=2, openings="lexicon", beside=tmp_path)
    table = result.named("why_explanations").set_index("explanation")
    assert table.loc["quantization undid alignment", "verdict"] == NOT
    assert table.loc["harmful prompts are not covered", "verdict"] == UNMEASURED
    assert "probes.coverage" in table.loc["harmful prompts are not covered", "why"]
    assert "Which explanation fits" in result.pages["q8"]
    assert "quantization undid alignment: DOES NOT" in result.pages["q8"]
