"""One call against the probes' own: the same numbers, whatever form the models are given in, measured once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

import probes
from interp import load, open_checkpoint
from interp.errors import InputError
from probes import Cells, Measurements, Result, calibration, direction, entropy, margin, neurons
from probes.measurements import MeasuredTable, inputs
from tests.cells import HARMFUL, HARMLESS, q8_0

PROMPTS: dict[str, Any] = {"harmful": HARMFUL, "harmless": HARMLESS}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def baseline(tiny: Callable[[str], Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def cell(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return q8_0(baseline, tmp_path_factory.mktemp("cells") / "Q8_0.gguf")


@pytest.fixture(scope="module")
def study(baseline: Path, cell: Path) -> Measurements:
    return probes.measure(baseline, {"q8": cell}, max_new_tokens=4, **PROMPTS)


@pytest.mark.parametrize("probe", [entropy, direction, calibration, neurons, margin], ids=lambda probe: probe.__name__)
def test_tables_are_those_of_the_probes(probe: Any, study: Measurements, baseline: Path, cell: Path) -> None:
    name = probe.__name__.rpartition(".")[2]
    opened = load(baseline)
    expected = probe.measure(opened, Cells({"q8": cell}, opened), HARMFUL, HARMLESS)
    pd.testing.assert_frame_equal(pd.DataFrame(getattr(study, name)), expected.table)
    assert study.result(name).settings == expected.settings


def test_a_streamed_study_measures_the_same_and_refuses_what_needs_the_whole_model(
    study: Measurements, baseline: Path, cell: Path
) -> None:
    streamed = probes.measure(baseline, {"q8": cell}, stream=True, **PROMPTS)
    for name in ("entropy", "neurons", "safety_units"):
        pd.testing.assert_frame_equal(pd.DataFrame(streamed.table(name)), pd.DataFrame(study.table(name)))
    for name in ("quality", "answers"):
        with pytest.raises(InputError, match="needs the whole model in memory"):
            getattr(streamed, name)
    with pytest.raises(InputError, match="no stream beside it"):
        probes.measure(load(baseline), {"q8": cell}, stream=True, **PROMPTS)


def test_cells_on_disk_are_opened_where_the_baseline_is(
    baseline: Path, cell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []
    monkeypatch.setattr(inputs, "OpenedCells", lambda paths, _, device: devices.append(device) or paths)
    loaded = load(baseline)
    assert set(inputs.open_cells({"loaded": loaded, "path": cell}, loaded)) == {"loaded", "path"}
    assert devices == ["cpu"]


def test_what_a_probe_writes_beside_its_table_is_there(study: Measurements) -> None:
    assert len(study.table("margin_prompts")) == 2 * (len(HARMFUL) + len(HARMLESS))
    assert set(study.table("margin_separation")["cell"]) == {"baseline", "q8"}
    assert set(study.safety_units["cell"]) == {"q8"}
    with pytest.raises(InputError, match=r"no table 'entropie'.*entropy, direction"):
        study.table("entropie")


@pytest.mark.parametrize("form", ["mapping", "string", "list", "single", "checkpoint", "model", "mixed"])
def test_models_can_be_given_as_they_come(form: str, study: Measurements, baseline: Path, cell: Path) -> None:
    given: dict[str, Any] = {
        "mapping": (baseline, {"Q8_0": cell}),
        "string": (str(baseline), {"Q8_0": str(cell)}),
        "list": (baseline, [cell]),
        "single": (baseline, str(cell)),
        "checkpoint": (open_checkpoint(baseline), [open_checkpoint(cell)]),
        "model": (load(baseline), load(cell, like=baseline)),
        "mixed": (baseline, {"Q8_0": load(cell, like=baseline), "again": cell}),
    }
    found = probes.measure(*given[form], **PROMPTS).entropy
    assert list(dict.fromkeys(found["cell"]))[:2] == ["baseline", "Q8_0"]
    expected = study.entropy.assign(cell=study.entropy["cell"].replace("q8", "Q8_0"))
    pd.testing.assert_frame_equal(pd.DataFrame(found).iloc[:4], pd.DataFrame(expected))


def test_nothing_is_measured_twice_and_nothing_before_it_is_asked(
    baseline: Path, cell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probes.margin import probe

    calls: list[str] = []
    measure, opened = probe.margins, Cells.__getitem__
    monkeypatch.setattr(probe, "margins", lambda *given: calls.append("margins") or measure(*given))
    monkeypatch.setattr(Cells, "__getitem__", lambda cells, name: calls.append(name) or opened(cells, name))
    study = probes.measure(baseline, {"q8": cell}, **PROMPTS)
    assert not calls
    assert study.margin is not None
    first = list(calls)
    assert first.count("margins") == 5  # both sides of both models, and the baseline's own noise
    assert study.margin.equals(study.margin)
    assert study.table("margin_prompts") is not None
    assert calls == first
    assert study.entropy is not None
    assert calls.count("q8") == 1  # a single cell stays open


def test_prompts_are_files_lists_or_names(baseline: Path, cell: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n".join(HARMFUL.instructions))
    given = probes.measure(baseline, cell, harmful=tmp_path / "mine.txt", harmless=list(HARMLESS.instructions), limit=3)
    assert given.harmful.instructions == HARMFUL.instructions[:3]
    assert given.harmless.instructions == HARMLESS.instructions[:3]
    builtin = probes.measure(baseline, cell, harmless="borderline")
    assert (len(builtin.harmful), builtin.harmless.name) == (128, "borderline")


def test_bad_input_is_named(baseline: Path, cell: Path) -> None:
    with pytest.raises(InputError, match="Two cells are named 'Q8_0'"):
        probes.measure(baseline, [cell, str(cell)])
    with pytest.raises(InputError, match="The cell Q8 is a int"):
        probes.measure(baseline, {"Q8": 8})
    with pytest.raises(InputError, match="'baseline' is the baseline's name"):
        probes.measure(baseline, {"baseline": cell})
    with pytest.raises(InputError, match="nowhere"):
        probes.measure(baseline, ["/nowhere/model"])
    with pytest.raises(InputError, match="'float99' is not known"):
        probes.measure(baseline, cell, dtype="float99")
    with pytest.raises(InputError, match="loaded already"):
        probes.measure(load(baseline), cell, dtype="float32")
    with pytest.raises(InputError, match="nothing to compare"):
        probes.measure(baseline, {}, **PROMPTS).entropy  # noqa: B018


WRONG = """
import sys
from interp import load
from interp.errors import InputError
from probes import builtin, calibration, direction, entropy, geometry, margin, neurons
baseline, cell = sys.argv[1:]
opened = load(baseline)
sets = builtin("harmful").take(2), builtin("harmless").take(2)
for probe in (entropy, direction, calibration, neurons, margin, geometry):
    forms = ({"Q8_0": cell}, cell, [cell], opened)
    for given in ((baseline, {"Q8_0": cell}), *((opened, form) for form in forms)):
        try:
            probe.measure(*given, *sets)
        except InputError as error:
            print(error)
"""


def test_a_probe_given_paths_says_what_it_takes(baseline: Path, cell: Path) -> None:
    """Outside the tests' own type checks, as a user calls it."""
    command = [sys.executable, "-c", WRONG, str(baseline), str(cell)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 6 * 5
    assert all("Call probes.measure(baseline, cells)" in line for line in said)
    assert said[0].startswith(f"The baseline is a str, {str(baseline)!r}. Expected a loaded model.")
    assert said[1].startswith(f"The cell Q8_0 is a str, {str(cell)!r}.")
    assert said[3].startswith("The cells are a list. Expected loaded models by name.")
    assert said[4].startswith("The cells are a HookedModel.")


def test_tables_are_pandas_and_say_what_the_reader_must_know(study: Measurements) -> None:
    assert isinstance(study.entropy, pd.DataFrame)
    derived = study.entropy[study.entropy["prompts"] == "harmful"]
    assert type(derived) is pd.DataFrame
    assert type(study.entropy.merge(study.calibration, on=["cell", "prompts"])) is pd.DataFrame
    assert study.entropy.warnings == study.result("entropy").warnings
    odd = Result("entropy", pd.DataFrame({"cell": ["<i>x</i>"]}), {}, ["a <script>alert(1)</script> & more"])
    shown = MeasuredTable.of(odd)._repr_html_()
    assert "<script>" not in shown
    assert "<i>" not in shown
    assert BeautifulSoup(shown, "html.parser").li.text == odd.warnings[0]  # type: ignore[union-attr]


def points_of(figure: Any, place: int = 0) -> np.ndarray:
    """[series, 2]: what is drawn as points on the first axes."""
    line = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None", None)][place]
    return np.column_stack(line.get_data())


def test_figures_draw_the_tables(study: Measurements) -> None:
    for name, column in (("entropy", "shift"), ("calibration", "confidence_shift"), ("margin", "shift")):
        table = getattr(study, name)
        rows = table[(table["cell"] == "q8") & (table["prompts"] == "harmless")]
        figure = table.plot()
        assert points_of(figure, 1)[0, 0] == pytest.approx(rows[column].iloc[-1])
        low, high = figure.axes[0].collections[1].get_segments()[0][:, 0]
        assert [low, high] == pytest.approx(rows[[f"{column}_low", f"{column}_high"]].iloc[-1].to_list())
    cosines = study.direction.loc[study.direction["cell"] == "q8", "cosine"]
    assert points_of(study.direction.plot())[:, 1] == pytest.approx(
        np.maximum(0.05, np.degrees(np.arccos(np.clip(cosines, -1, 1)))), rel=1e-6
    )
    ratios = study.neurons[(study.neurons["site"] == "mlp") & study.neurons["layer"].notna()]
    drawn = study.neurons.plot(site="mlp", ratio="normalized_ratio")
    assert points_of(drawn)[:, 1] == pytest.approx(ratios["normalized_ratio"].dropna())
    assert points_of(study.matrix.plot())[:, 0] == pytest.approx(study.matrix["refusal_rate"])
    with pytest.raises(InputError, match="nothing to draw of ratio at heads"):
        study.neurons.plot(site="heads")


def test_quality_that_was_measured_is_in_the_matrix_and_its_figure(baseline: Path, cell: Path, tmp_path: Path) -> None:
    study = probes.measure(baseline, {"q8": cell}, limit=6, max_new_tokens=4, **PROMPTS)
    assert study.matrix["quality_delta"].isna().all()
    scores = study.quality[(study.quality["metric"] == "bertscore_f1") & (study.quality["against"] == "baseline")]
    row = study.matrix.set_index("cell").loc["q8"]
    assert row["quality_delta"] == pytest.approx(scores["value"].iloc[0] - 1)  # the baseline's own answers score 1
    figure = study.matrix.plot()
    assert figure.axes[0].get_xlabel() == "Change of quality (points)"
    x, y = points_of(figure)[0]
    assert (x, y) == (pytest.approx(100 * row["quality_delta"]), pytest.approx(100 * row["refusal_rate_delta"]))
    page = study.report(tmp_path / "out.html").read_text()
    assert "the baseline&#39;s own answers" in page


def test_a_notebook_shows_figures_and_the_study(study: Measurements) -> None:
    assert study.entropy.plot()._repr_png_().startswith(b"\x89PNG")
    assert "llama" in repr(study)
    assert "cells q8" in repr(study)
    assert "&lt;HookedModel" in study._repr_html_()
    assert "<HookedModel" not in study._repr_html_()


def test_results_say_what_they_are(study: Measurements) -> None:
    about = "rows, cells q8, 4 harmful prompts, 4 harmless prompts>"
    assert repr(study.result("entropy")) == f"<Result of entropy: 4 {about}"
    assert repr(study.result("margin")) == f"<MarginResult of margin: {len(study.margin)} {about}"
    odd = {"cells": "AWQ", "prompts": {"harmful": "a file"}}  # of a file that something else wrote
    assert repr(Result("made", pd.DataFrame(), odd)) == "<Result of made: 0 rows>"


def test_answers_drift_and_matrix_belong_together(study: Measurements, cell: Path) -> None:
    from interp import complete
    from interp.chat import render

    texts = render(study.baseline.tokenizer, HARMFUL.instructions).texts
    expected = [completion.text for completion in complete(study.baseline, texts, max_new_tokens=4)]
    completions = study.table("completions")
    rows = completions[(completions["cell"] == "baseline") & (completions["prompts"] == "harmful")]
    assert rows["text"].to_list() == expected
    assert set(study.drift["cell"]) == {"q8"}
    matrix = study.matrix.set_index("cell")
    assert set(matrix.index) == {"baseline", "q8"}
    assert matrix.loc["q8", "bits_per_weight"] == open_checkpoint(cell).bits_per_weight()
    shift = study.entropy.set_index(["cell", "prompts"]).loc[("q8", "harmful"), "shift"]
    assert matrix.loc["q8", "entropy_shift"] == shift


def test_the_report_is_a_page_and_the_same_from_a_folder(study: Measurements, tmp_path: Path) -> None:
    page = study.report(tmp_path / "out.html").read_text(encoding="utf-8")
    soup = BeautifulSoup(page, "html.parser")
    assert "q8" in soup.text
    study.write(tmp_path / "run")
    html, _ = probes.report.write(tmp_path / "run")
    again = BeautifulSoup(html.read_text(encoding="utf-8"), "html.parser")
    for section in ("verdict", "matrix", "layers", "damage"):
        assert str(soup.find(id=section)) == str(again.find(id=section))
        assert soup.find(id=section) is not None
    with pytest.raises(InputError, match="out"):
        study.report(tmp_path / "out.html" / "below.html")


def test_models_in_memory_are_measured_too(baseline: Path) -> None:
    from tests.cells import Noisy

    opened = load(baseline)
    noisy = Noisy(opened, {"blocks.1.hook_mlp_out": lambda added: added * 1.5})
    study = probes.measure(opened, {"noisy": noisy}, max_new_tokens=2, **PROMPTS)
    assert study.matrix.set_index("cell").loc["noisy", "format"] == "in memory"
    with pytest.raises(InputError, match="made in memory"):
        study.safety_units  # noqa: B018
