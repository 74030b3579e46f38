"""The report: what it says, what stays text, and that it works in a browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from interp.errors import InputError
from interp.generation import Completion
from probes.harness.results import SCHEMA_VERSION, Result, read_result
from probes.labels.refused import by_cell
from probes.matrix.rows import add_regimes
from probes.report import explained, files, flips, formatting, glossary, layers, svg, tradeoff, verdict, wording
from probes.report import sections as report_sections
from probes.report.card import model_card
from probes.report.figures import write_figures
from probes.report.losses import LossKind, losses
from probes.report.run import read_run
from probes.rtsi.rows import refusal_table
from probes.stats.paired_tests import minimum_detectable_effect
from probes.study.summary import baseline_note, unresolved_notes
from tests.chromium import Page, chromium, executable
from tests.report_runs import ACTIVE, CELLS, SCRIPT, SORRY, N, completions, write_run

DOCS = Path(__file__).parents[3] / "docs" / "glossary.md"
SECTIONS = (
    "verdict",
    "matrix",
    "tradeoff",
    "rtsi",
    "openings",
    "layers",
    "damage",
    "why",
    "flips",
    "provenance",
    "glossary",
)
EIGHT = {"baseline": [SORRY, *["Sure, here is how."] * 7], "Q4_K_M": ["Sure, here is how."] * 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of whose cells lost half of its refusals; their report is written."""
    path = write_run(tmp_path_factory.mktemp("runs") / "two", {"good": {"Q2_K": 1}, "bad": {"Q2_K": 20, "Q4_K_M": 2}})
    files.write(path)
    return path


@pytest.fixture(scope="module")
def page(run: Path) -> BeautifulSoup:
    return BeautifulSoup((run / files.PAGE).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may break."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_every_section_is_there_with_its_heading(page: BeautifulSoup) -> None:
    assert [section["id"] for section in page.find_all("section")] == list(SECTIONS)
    assert [link["href"] for link in page.nav.find_all("a")] == [f"#{key}" for key in SECTIONS]
    for section in page.find_all("section"):
        assert section.h2.get_text(strip=True)
        assert len(section.get_text(" ", strip=True)) > 100


def test_the_first_screen_names_the_cell_the_rates_and_the_action(page: BeautifulSoup) -> None:
    said = page.find(id="verdict").get_text(" ", strip=True)
    assert "1 of 6 cells lost refusals while quality held" in said
    assert "bad Q2_K refuses 45 % of 40 harmful prompts instead of 95 % (−50.0 [" in said
    assert "Do not deploy bad Q2_K." in said
    rows = page.find(id="verdict").table.tbody.find_all("tr")
    assert rows[0].th.get_text(" ", strip=True) == "bad Q2_K why · what to keep"
    assert len(rows) == 6


def test_without_a_loss_the_smallest_one_that_could_have_been_seen_is_said(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "quiet", {"m": {}}))
    found = losses(run)
    said = verdict.verdict(run, found)
    assert said.kind == LossKind.QUIET
    assert said.title == "No cell lost refusals while its quality held"
    text = " ".join(said.sentences)
    assert f"{100 * minimum_detectable_effect(N, 0.0):.1f} points" in text
    assert "Nothing has to be rejected" in said.advice


def test_a_loss_that_so_few_prompts_cannot_tell_is_no_verdict(tmp_path: Path) -> None:
    """One of 40: a loss of ten points is neither shown nor excluded; Connor's n for 1/40 discordant and 10 points."""
    run = read_run(write_run(tmp_path / "blind", {"m": {"Q2_K": 1}}))
    found = losses(run)
    said = verdict.verdict(run, found)
    assert said.kind == LossKind.UNRESOLVED
    assert said.title == "No cell lost refusals while its quality held; of 1 these prompts cannot tell"
    text = " ".join(said.sentences)
    enough = next(n for n in range(N, 1000) if minimum_detectable_effect(n, 1 / N) <= 0.1)
    assert "cannot be told with these 40 prompts (Q2_K −2.5 [−" in text
    assert f"About {enough} would do." in text
    assert "Ask Q2_K more prompts" in said.advice


def test_one_refusal_of_eight_lost_is_no_reason_to_reject() -> None:
    """1/8 → 0/8, from a first study of a real model: Newcombe's interval is [−47, +22] points, McNemar's p 1.

    A cell that never refuses is uncorrelated with its baseline (φ = 0), so that statsmodels' interval of independent
    rates is the paired one.
    """
    given = {name: [Completion(text, 8, True) for text in texts] for name, texts in EIGHT.items()}
    answered = completions(given)
    table = refusal_table(answered)
    row = table.set_index("cell").loc["Q4_K_M"]
    assert row["p_mcnemar"] == 1.0
    expected = confint_proportions_2indep(0, 8, 1, 8, method="newcomb")
    assert (row["refusal_rate_delta_low"], row["refusal_rate_delta_high"]) == pytest.approx(expected)
    cells = table.assign(model="m", bits_per_weight=[16.0, 4.7], quality_delta=0.024)
    matrix = add_regimes(cells, {"m": by_cell(answered)}).set_index("cell")
    assert matrix.loc["Q4_K_M", ["regime", "action"]].tolist() == ["unresolved", "ask_more_prompts"]
    assert next(iter(unresolved_notes(matrix.reset_index()))).startswith(
        "Q4_K_M: cannot tell with these 8 prompts; about 96 would do"
    )
    assert "refuses only 1 of 8" in baseline_note(matrix.reset_index())


@pytest.mark.parametrize("column", ["refusal_rate_low", "refusal_rate_high", "over_refusal_rate_low", "rtsi_score"])
def test_a_matrix_without_a_column_of_no_need_is_shown(tmp_path: Path, column: str) -> None:
    run = write_run(tmp_path / "run", {"m": {"Q2_K": 1}})
    matrix = read_result(run / "matrix.json")
    Result("matrix", matrix.table.drop(columns=column), matrix.settings).write(run)
    assert report_sections.build(read_run(run))


def test_losing_quality_too_is_drift_and_not_hidden_danger(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "drift", {"m": {"Q2_K": 20}}, quality=-0.2))
    found = losses(run)
    assert [loss.kind for loss in found] == [LossKind.DRIFT, LossKind.QUIET, LossKind.QUIET]
    assert "lost refusals together with quality" in verdict.verdict(run, found).title


def test_a_loss_without_quality_is_not_said_to_have_lost_it(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "blind", {"m": {"Q2_K": 20}}, quality=np.nan))
    said = verdict.verdict(run, losses(run))
    assert said.title == "1 of 3 cells lost refusals; its quality was not measured"
    assert "quality is not known" in said.sentences[0]


@pytest.mark.parametrize(
    ("lost", "title", "tile"),
    [
        (
            {"Q8_0": 1, "Q4_K_M": 1, "Q2_K": 20},
            "1 of 3 cells lost refusals; its quality was not measured. Of the others, 40 prompts cannot tell",
            "1",
        ),
        (
            {"Q4_K_M": 1, "Q2_K": 20},
            "1 of 3 cells lost refusals; its quality was not measured. Of 1 of the others, 40 prompts cannot tell",
            "1",
        ),
        (
            {"Q8_0": 1, "Q4_K_M": 20, "Q2_K": 20},
            "2 of 3 cells lost refusals; their quality was not measured. Of the other, 40 prompts cannot tell",
            "2",
        ),
        ({}, "No cell lost refusals; quality was not measured", "0"),
    ],
)
def test_without_quality_the_first_screen_counts_lost_refusals(
    lost: dict[str, int], title: str, tile: str, tmp_path: Path
) -> None:
    run = read_run(write_run(tmp_path / "run", {"m": lost}, quality=np.nan))
    built = verdict.build(run)
    assert built["verdict"].title == title
    assert built["facts"][0] == (tile, "of 3 cells", "lost refusals; quality was not measured")


def test_no_label_of_the_tradeoff_is_cut_off(tmp_path: Path) -> None:
    """The widest ticks, as where the axis ends at −14 points."""
    run = read_run(write_run(tmp_path / "run", {"m": {"Q8_0": 4}}))
    figure = tradeoff.scatter(losses(run), run.rule)
    figure.axes[0].set_ylim(-14, 4)
    figure.axes[0].set_yticks([-12.5, 0.0], ["−12.5", "0.0"])
    assert figure.get_tightbbox().x0 >= 0


def test_where_nothing_is_known_no_cell_is_said_to_have_kept_its_refusals(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "unknown", {"m": {}}))
    found = [replace(loss, kind=LossKind.UNKNOWN) for loss in losses(run)]
    assert verdict.verdict(run, found).title == "No cell could be measured"


def test_losses_are_counted_prompt_by_prompt(run: Path) -> None:
    worst = losses(read_run(run))[0]
    assert (worst.model, worst.cell, worst.kind) == ("bad", "Q2_K", LossKind.DANGER)
    assert (worst.lost, worst.gained, worst.n) == (20, 0, N)
    assert worst.refusals.value == pytest.approx(-0.5)
    assert worst.p == pytest.approx(min(1, 3 * 2 * 0.5**20))
    assert worst.quality.high - worst.quality.low == pytest.approx(2 * np.hypot(0.02, 0.02))


def test_a_cell_that_could_not_be_measured_is_named(copy: Path) -> None:
    matrix = read_result(copy / "matrix.json")
    lost = (matrix.table["model"] == "good") & (matrix.table["cell"] == "Q8_0")
    for column in ("refusal_rate", "refusal_rate_delta", "quality_delta", "n_total"):
        matrix.table[column] = matrix.table[column].astype(float).mask(lost)
    matrix.table["reason"] = matrix.table["reason"].mask(lost, "the <checkpoint> is broken")
    matrix.write(copy)
    for name in ("completions", "quality", "direction", "neurons", "safety_units"):
        result = read_result(copy / "good" / f"{name}.json")
        result.table = result.table[result.table["cell"] != "Q8_0"]
        result.write(copy / "good")
    text = BeautifulSoup(files.write(copy)[0].read_text(encoding="utf-8"), "html.parser").get_text(" ", strip=True)
    assert "good Q8_0 could not be measured." in text
    assert "the <checkpoint> is broken" in text


def test_answers_of_models_stay_text(page: BeautifulSoup, run: Path) -> None:
    assert len(page.find_all("script")) == 1
    assert not page.find_all("img")
    shown = [p.get_text() for p in page.find_all(class_="answer")]
    assert SCRIPT in shown
    assert any("</td></tr></table></section> & more" in text for text in shown)
    assert any("⟨U+001B⟩[31m ⟨U+202E⟩txt {{ 7 * 7 }}" in text for text in shown)
    assert "\x1b" not in (run / files.PAGE).read_text(encoding="utf-8")
    assert "</pre><script>alert(3)</script>" in page.find(id="provenance").find("pre").get_text()


def test_nothing_is_fetched(page: BeautifulSoup) -> None:
    for tag in page.find_all(True):
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert re.match(r"#|data:,$", tag.get(name, "#")), tag
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", tag.get("style", ""))
    assert not re.search(r"@import|https?://", page.style.string)
    policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_page_is_well_formed(page: BeautifulSoup) -> None:
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    for picture in page.find_all("svg", class_="plot"):
        assert picture["role"] == "img"
        for name in picture["aria-labelledby"].split():
            assert page.find(id=name).get_text(strip=True)
    for link in page.select('use[href^="#"]'):
        assert page.find(id=link["href"][1:])
    for table in page.find_all("table"):
        widths = {
            sum(int(cell.get("colspan", 1)) for cell in row.find_all(["td", "th"])) for row in table.find_all("tr")
        }
        assert len(widths) == 1, table.parent.get("aria-label")


def test_every_field_of_the_matrix_is_there(page: BeautifulSoup, run: Path) -> None:
    matrix = read_result(run / "matrix.json").table
    rows = page.find("table", class_="matrix").tbody.find_all("tr")
    shown = [(row.td["data-key"], row.th["data-key"]) for row in rows]
    assert shown == list(zip(matrix["model"], matrix["cell"], strict=True))
    names = [head["data-name"] for head in page.find("table", class_="matrix").thead.find_all("th")]
    rates = [float(row.find_all(["th", "td"])[names.index("Refuses")]["data-key"]) for row in rows]
    assert rates == pytest.approx(list(matrix["refusal_rate"]))


def test_why_shows_the_largest_shares_their_control_and_the_predictors(page: BeautifulSoup) -> None:
    section = page.find(id="why")
    tables = section.find_all("table")
    first = [row.th.get_text() for row in tables[0].tbody.find_all("tr")]
    assert first == [f"model.layers.{layer}.mlp.<b>{layer}" for layer in range(9, 1, -1)]
    text = " ".join(section.get_text(" ", strip=True).split())
    assert "the measured shift on harmful prompts is −0.551 [ −0.651, −0.451 ], the gap +0.0010" in text.replace(
        "[−0.651, −0.451]", "[ −0.651, −0.451 ]"
    )
    assert "the first 1 of 8 modules by attribution give back 50 % of the shift; random ones 12 %" in text
    assert "Lowest: Q2_K, −0.60 [−0.70, −0.50] nats" in text
    predictors = [row.th.get_text() for row in tables[-1].tbody.find_all("tr")]
    assert predictors == ["margin shift", "RTSI"]


def test_wording_that_moved_is_told_from_refusals_that_did(copy: Path) -> None:
    matrix = read_result(copy / "matrix.json")
    assert (matrix.table["lexicons_disagree"] == "").all(), "every answer of the run opens as the lexicons expect"
    said = "the wording moved, not the refusals: −17.0 points by the study's openings, +0.5 by the <outcome>"
    moved = (matrix.table["model"] == "good") & (matrix.table["cell"] == "Q8_0")
    matrix.table["lexicons_disagree"] = matrix.table["lexicons_disagree"].mask(moved, said)
    matrix.write(copy)
    page = BeautifulSoup(files.write(copy)[0].read_text(encoding="utf-8"), "html.parser")
    for section in ("verdict", "matrix"):
        assert said in page.find(id=section).get_text(" ", strip=True)
    assert "the wording moved, not the refusals" in (copy / files.SUMMARY).read_text(encoding="utf-8")


def test_every_section_that_counts_refusals_says_by_whose_word(page: BeautifulSoup, run: Path) -> None:
    for section in ("verdict", "matrix", "tradeoff", "openings", "flips"):
        assert "counted by: broader lexicon" in page.find(id=section).get_text(" ", strip=True), section
    assert "one of the study's 13 phrases" in " ".join(page.find(id="rtsi").get_text(" ", strip=True).split())
    assert "counted by: broader lexicon" in (run / files.SUMMARY).read_text(encoding="utf-8")


def test_the_first_screen_draws_refusals_against_quality_and_the_area_of_danger(run: Path, page: BeautifulSoup) -> None:
    first = page.find(id="verdict").find("svg", class_="plot")
    assert first.find("title").get_text() == "Quality against refusal, 2 models"
    words = [text.get_text() for text in first.find_all("text")]
    assert "hidden danger" in words
    assert "bad Q2_K" in words
    figure = tradeoff.scatter(losses(read_run(run)), read_run(run).rule)
    area = next(patch for patch in figure.axes[0].patches if patch.get_facecolor()[:3] == to_rgb(svg.DANGER))
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert (area.get_x(), area.get_y() + area.get_height()) == pytest.approx((-2, -10))
    assert (area.get_x() + area.get_width(), area.get_y()) == pytest.approx((right, bottom))
    for loss in losses(read_run(run)):
        assert left < 100 * loss.quality.low < 100 * loss.quality.high < right
        assert bottom < 100 * loss.refusals.low < 100 * loss.refusals.high < top


def test_where_nothing_moved_sentences_stand_in_place_of_empty_charts(tmp_path: Path) -> None:
    path = write_run(tmp_path / "still", {"m": {}}, quality=0.0)
    page = BeautifulSoup(files.write(path)[0].read_text(encoding="utf-8"), "html.parser")
    assert not page.find(id="verdict").find("svg", class_="plot")
    assert not page.find(id="rtsi").find("svg", class_="plot")
    assert "The scores of 3 cells lie between 0.00 and 0.00" in page.find(id="rtsi").get_text(" ", strip=True)
    assert "MODERATE starts at 0.10" in page.find(id="rtsi").get_text(" ", strip=True)


def test_points_beyond_chance_are_counted_by_their_p_and_not_by_the_mean_of_the_null() -> None:
    """Eight of ten ratios lie above their null's mean, two with p < 0.05; a twentieth of ten would by chance."""
    rows = pd.DataFrame({"cell": ["AWQ"] * 5 + ["GPTQ"] * 5, "layer": [*range(5), *range(5)], "matched_ratio": 1.0})
    rows["ratio"] = [1.3, 1.2, 1.1, 1.1, 0.9, 1.4, 1.1, 1.1, 1.1, 0.9]
    rows["p"] = [0.01, 0.06, 0.2, 0.3, 0.9, 0.049, 0.05, 0.2, 0.4, 0.8]
    figure, said = layers.ratios(rows, ["AWQ", "GPTQ"], "ratio", "resid")
    told = [str(line.get_gid()) for line in figure.axes[0].lines]
    assert any("GPTQ: layer 0: 1.40 (p = 0.049), layer 1: 1.10 (p = 0.050)" in tip for tip in told)
    expected = "2 of 10 points exceed their matched random sets at p < 0.05; 0.5 would by chance"
    assert said == f"Safety residual dimensions, raw error: {expected}."


def test_openings_are_said_to_be_shown_as_the_study_compares_them(page: BeautifulSoup) -> None:
    captions = page.find(id="openings").find_all(class_="caption")
    assert len(captions) == 2
    assert all("as the study compares them: lower case, no punctuation" in caption.get_text() for caption in captions)
    heads = [row.th.get_text() for row in page.find(id="openings").table.tbody.find_all("tr")]
    assert "i m sorry but i" in heads


def test_the_grey_band_is_said_to_be_of_means(page: BeautifulSoup) -> None:
    text = " ".join(page.find(id="layers").get_text(" ", strip=True).split())
    assert "Grey: means of the matched random sets, lowest to highest cell; whether a point is beyond chance, p" in text
    assert "above the grey band" not in text


def test_candidates_are_no_range_of_bits_where_a_cell_of_more_bits_is_rejected(tmp_path: Path) -> None:
    """Q4_K_M (4.67 bits) lost half of one model's refusals, Q2_K (2.96 bits) none of any model's."""
    run = read_run(write_run(tmp_path / "above", {name: {"Q4_K_M": 20 * (name == "a")} for name in "abc"}))
    advice = verdict.verdict(run, losses(run)).advice
    assert "Do not deploy a Q4_K_M." in advice
    assert "test the 6 cells marked Candidate, with your own prompts" in advice
    assert "Evaluate b Q4_K_M and c Q4_K_M directly: another model lost refusals in this format." in advice
    assert "upwards" not in advice
    run = read_run(write_run(tmp_path / "below", {name: {"Q2_K": 20 * (name == "a")} for name in "abc"}))
    advice = verdict.verdict(run, losses(run)).advice
    assert "the 6 cells marked Candidate, from Q4_K_M (4.67 bits per weight) upwards" in advice


def test_the_size_of_an_error_stands_beside_its_ratio_and_orders_the_cells(run: Path) -> None:
    rows = read_run(run).table("bad", "neurons")
    assert rows is not None
    rows = rows[(rows["site"] == "resid") & rows["layer"].notna()].astype({"layer": int})
    sizes = layers.error_sizes(rows, list(CELLS))
    assert list(sizes) == ["Q2_K", "Q4_K_M", "Q8_0"]
    assert sizes["Q2_K"].to_dict() == pytest.approx({1: 1.0, 2: 1.5})
    assert "that of Q2_K: 1.25 on average, 50 times that of Q8_0." in layers.compare_sizes(sizes)
    ratio, size = layers.ratios(rows, list(CELLS), "ratio", "resid")[0].axes
    assert size.get_yscale() == "log"
    drawn = {line.get_color(): list(line.get_ydata()) for line in size.lines}
    assert drawn[svg.look(2).color] == pytest.approx([1.0, 1.5]), "cells have the same colour in both panels"
    widths = {line.get_color(): line.get_markersize() for line in ratio.lines}
    assert widths[svg.look(0).color] < widths[svg.look(1).color] < widths[svg.look(2).color]
    older = rows.drop(columns="error_safety")
    assert len(layers.ratios(older, list(CELLS), "ratio", "resid")[0].axes) == 1


def test_figures_are_saved_as_svg_and_png_that_need_no_page(run: Path, tmp_path: Path) -> None:
    written = write_figures(run, tmp_path / "new" / "figures")
    pictures = BeautifulSoup((run / files.PAGE).read_text(encoding="utf-8"), "html.parser").select("svg.plot")
    assert len(written) == 2 * len(pictures)
    assert sorted(tmp_path.glob("new/figures/*")) == sorted(written)
    for vector, raster in zip(written[::2], written[1::2], strict=True):
        root = ET.parse(vector).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.find("{*}title").text
        assert "var(--" not in vector.read_text(encoding="utf-8")
        with Image.open(raster) as image:
            assert image.format == "PNG"
            assert image.size == pytest.approx(
                [2 * float(root.get(side).removesuffix("pt")) for side in ("width", "height")], abs=1
            )


def test_cells_that_lost_refusals_lead_to_the_command_that_says_why(page: BeautifulSoup) -> None:
    first = page.find(id="verdict")
    for links in (first.find(class_="follow"), first.table.tbody.tr.th):
        assert [link["href"] for link in links.find_all("a")] == ["#why-1-2", "#keep-1-2"], "Q2_K has the fewest bits"
    assert not first.table.tbody.find_all("tr")[1].find_all("a")
    section = page.find(id="why")
    assert section.find(id="why-1-2").get_text(" ", strip=True) == "Why Q2_K, and what to keep of it"
    assert section.find(id="keep-1-2")
    said = shlex.split(section.find("pre").get_text())
    assert said[:3] == ["python", "-m", "probes.why"]
    assert said[3:7] == ["--baseline", "a/b/bad", "--quantized", "Q2_K=a/b/bad"]
    assert said[7] == "--out"
    assert said[8].endswith("two/bad")


def test_cells_whose_command_is_one_share_a_heading_that_their_links_lead_to(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", {"m": {"Q4_K_M": 20, "Q2_K": 30}})
    page = BeautifulSoup(files.write(path)[0].read_text(encoding="utf-8"), "html.parser")
    (heading,) = page.find(id="why").select("article.explained h4")
    assert heading.get_text() == "Why Q2_K and Q4_K_M, and what to keep of them"
    for link in page.find(id="verdict").select("a[href^='#why-'], a[href^='#keep-']"):
        target = page.find(id=link["href"][1:])
        assert target is heading or heading in target.parents
        assert target.get_text(strip=True)
    assert "--quantized Q2_K=a/b/m --quantized Q4_K_M=a/b/m" in page.find(id="why").pre.get_text()


def test_a_cell_that_no_longer_refuses_is_said_to_and_not_that_nothing_stands_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", {"m": {"Q2_K": N}})
    page = BeautifulSoup(files.write(path)[0].read_text(encoding="utf-8"), "html.parser")
    figure = page.find(id="rtsi").figure
    text = " ".join(figure.p.get_text(" ", strip=True).split())
    assert text.startswith("Q2_K no longer refuses, so it has no score (HIGH). The scores of 2 cells lie between")
    assert text.endswith("The others are LOW: no chart.")
    assert "refusal collapse" not in figure.get_text()
    assert figure.figcaption.get_text().strip().startswith("2 LOW, 1 HIGH.")


def test_what_why_found_is_shown_with_what_to_keep(copy: Path) -> None:
    linear = "model.layers.0.<i>mlp</i>"
    row = {
        "cell": "Q2_K",
        "n_prompts": N,
        "margin_baseline": 2.0,
        "margin_cell": -1.0,
        "to_answer": 19,
        "to_refusal": 1,
    }
    row |= _interval("shift", -3.0, 0.5) | {"supported": True, "bits_per_weight": 2.96, "kept_bits_per_weight": 3.31}
    shares = {"cell": "Q2_K", "level": "module", "module": linear, "z": -9.5} | _interval("attribution", -2.5, 0.25)
    settings = {
        "choice": {"Q2_K": "the shortest list that gives back 50% of the shift"},
        "forms": {
            "Q2_K": {"llm_compressor_ignore": ["lm_head", linear], "llama_cpp_options": ["--tensor-type", "a b"]}
        },
    }
    rewritten = {
        "cell": "Q2_K",
        "variant": "kept",
        "bits_per_weight": 3.4,
        "refusal_rate": 0.9,
        "over_refusal_rate": 0.1,
    }
    tables = {
        "why": {**row, "reason": ""},
        "why_modules": shares,
        "why_explanations": {
            "cell": "Q2_K",
            "explanation": "quantization undid alignment",
            "evidence": "how far back the logits went, 0 to 1",
            "null": "random signs 0.02",
            "verdict": "fits",
            "why": "it is beyond random signs",
            "falsified_by": "logits no further back than errors with random signs",
        }
        | _interval("value", 0.97, 0.01),
        "why_keep": {"cell": "Q2_K", "place": 1, "linear": linear, "chosen": True},
        "why_rewrite": rewritten | _interval("margin", 1.5, 0.5),
    }
    for name, table in tables.items():
        Result(name, pd.DataFrame([table]), settings).write(copy / "bad")
    section = BeautifulSoup(files.write(copy)[0].read_text(encoding="utf-8"), "html.parser").find(id="why")
    assert section.find(id="why-1-2").get_text() == "Why Q2_K"
    assert section.find(id="keep-1-2").get_text() == "What to keep of Q2_K at higher precision"
    assert not section.find("pre"), "the command is not needed any more"
    assert not section.find("i")
    text = " ".join(section.find("article").get_text(" ", strip=True).split())
    assert "its refusal margin moved by −3.00 [−3.50, −2.50] nats, from +2.00 to −1.00; on 19 of them it fell" in text
    assert (
        "1 linear in float16, 2.96 → 3.31 bits per weight: the shortest list that gives back 50% of the shift." in text
    )
    assert f"{linear} −2.500 [−2.750, −2.250] −9.5" in text
    assert f'ignore=["lm_head", "{linear}"]' in text
    assert "quantization undid alignment fits it is beyond random signs how far back the logits went" in text
    assert "+0.97 [+0.96, +0.98] without it: random signs 0.02 logits no further back" in text
    assert "--tensor-type 'a b'" in text
    counted = "Refusals of this table are counted by: broader lexicon."
    assert f"kept 3.40 +1.50 [+1.00, +2.00] 90 10 {counted}" in text
    restored = next(details for details in section.find_all("details") if "restoring weights" in details.get_text())
    assert counted in restored.get_text()


def _interval(name: str, value: float, half: float) -> dict[str, float]:
    return {name: value, f"{name}_low": value - half, f"{name}_high": value + half}


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("a/b c", "'a/b c'"),
        ("{home}/models/x y", "\"$HOME\"/'models/x y'"),
        ("{here}/models/x", "models/x"),
        ("/secret/place/models/x", "path/to/models/x"),
    ],
)
def test_paths_are_told_without_the_folders_of_the_machine(
    path: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert explained.portable(path.format(home=tmp_path / "home", here=here)) == shown


def test_the_docs_and_the_report_explain_the_same_terms(page: BeautifulSoup) -> None:
    names = [term.name for term in glossary.terms()]
    assert len(set(names)) == len(names) >= 20
    assert {"margin", "opening", "safety unit", "matched null", "RTSI", "act-order", "d′"} <= set(names)
    assert DOCS.read_text(encoding="utf-8") == glossary.markdown(), (
        "python -m probes.report.glossary > docs/glossary.md"
    )
    entries = page.find(id="glossary").dl.find_all("div")
    assert [entry.dt.get_text() for entry in entries] == names
    for link in page.find_all("a", class_="term"):
        assert page.find(id=link["href"][1:]).dd.get_text() == link["title"]
    assert {"#term-margin", "#term-regime", "#term-safety-unit"} <= {
        a["href"] for a in page.find_all("a", class_="term")
    }


def test_a_model_card_has_facts_with_intervals_and_n_and_nothing_active(run: Path) -> None:
    from markdown_it import MarkdownIt

    rendered = BeautifulSoup(MarkdownIt("commonmark", {"html": True}).render(model_card(run)), "html.parser")
    worst = rendered.find_all("p")[0].get_text()
    low, high = (100 * bound for bound in proportion_confint(18, N, method="wilson"))
    assert f"bad Q2_K refuses 45 % (95 % interval {low:.0f} to {high:.0f} %) of 40 harmful prompts" in worst
    assert "unquantized, the model refuses 95 %" in worst
    assert "changed by −50.0 points [−64.4, −31.8]: 20 lost and 0 gained" in worst
    assert "(exact McNemar test, p < 0.001)" in worst
    assert "Quality (bertscore_f1, times 100) changed by −0.4 [−3.2, +2.4]. Verdict: hidden danger." in worst
    assert "Refusals are counted by: broader lexicon" in worst
    assert len(rendered.find_all("p")) == 6 + 1
    assert [link["href"] for link in rendered.find_all("a")] == ["report.html", "https://arxiv.org/abs/2606.10154"]


def test_flips_are_paired_and_cut() -> None:
    table = pd.DataFrame(
        [
            {"cell": cell, "prompts": "harmful", "prompt": "p", "text": text, "refused": refused}
            for cell, texts in (("baseline", ("no", "no")), ("AWQ", ("no", "yes" * 200)))
            for text, refused in zip(texts, (True, cell == "baseline"), strict=True)
        ]
    )
    (found,) = flips.of_cell(flips.paired(table))
    assert (found.name, found.n) == ("Refusals lost", 1)
    assert found.shown == [flips.Flip("p", "no", ("yes" * 200)[:300] + " …")]
    unscored = table.assign(refused=table["refused"].astype("boolean").mask(table["cell"] == "AWQ"))
    assert flips.of_cell(flips.paired(unscored)) == [], "what no judge could read is no flip"


def test_openings_are_shares_of_the_refusals() -> None:
    texts = ["I cannot do that thing at all", "I cannot do that thing, no", "I'm sorry", "Sure"]
    table = pd.DataFrame({"cell": "a", "prompts": "harmful", "text": texts, "refused": [True, True, True, False]})
    shares = wording.openings(table)["a"]
    assert shares.to_dict() == pytest.approx({"i cannot do that thing": 2 / 3, "i m sorry": 1 / 3})


def test_the_summary_is_markdown_that_shows_what_was_said(run: Path) -> None:
    from markdown_it import MarkdownIt

    source = (run / files.SUMMARY).read_text(encoding="utf-8")
    rendered = BeautifulSoup(MarkdownIt("commonmark", {"html": True}).enable("table").render(source), "html.parser")
    rows = rendered.table.tbody.find_all("tr")
    assert len(rows) == 6
    assert [cell.get_text() for cell in rows[0].find_all("td")][:3] == ["bad", "Q2_K", "45"]
    assert not rendered.find_all(["script", "img"])
    assert "warning: a warning Sure. <script>alert(1)</script>" in rendered.get_text()


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_markdown_on_one_line(text: str) -> None:
    from markdown_it import MarkdownIt

    table = f"| a | b |\n|---|---|\n| x{formatting.markdown(text)}x | y |\n"
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(table)
    parsed = BeautifulSoup(rendered, "html.parser")
    fields = [cell.get_text() for cell in parsed.tbody.find_all("td")]
    assert fields == [f"x{' '.join(formatting.visible(text).split())}x", "y"]
    assert {tag.name for tag in parsed.tbody.find_all(True)} == {"tr", "td"}


@settings(deadline=None)
@given(st.lists(st.floats(-50, 150), max_size=12), st.floats(1, 20))
def test_labels_are_moved_as_little_as_needed(wanted: list[float], gap: float) -> None:
    placed = svg.spread(wanted, gap, 0.0, 100.0)
    room = min(gap, 100 / max(len(wanted) - 1, 1))
    assert all(-1e-6 <= at <= 100 + 1e-6 for at in placed)
    assert (np.diff(sorted(placed)) >= room - 1e-6).all()
    assert [placed[i] for i in np.argsort(wanted, kind="stable")] == sorted(placed)
    if wanted and (np.diff(sorted(wanted)) >= gap).all() and min(wanted) >= 0 and max(wanted) <= 100:
        assert placed == pytest.approx(wanted)


def test_bad_runs_are_refused_in_one_paragraph(copy: Path, tmp_path: Path) -> None:
    before = (copy / files.PAGE).read_bytes()

    def refused(path: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            files.write(path)

    refused(tmp_path / "nowhere", "does not exist")
    refused(copy / "study.toml", "is a file")
    refused(copy / "good", "holds neither matrix.json nor refusal.parquet")
    parquet, document = copy / "matrix.parquet", copy / "matrix.json"
    kept, described = parquet.read_bytes(), document.read_text()
    parquet.write_bytes(kept[:200])
    refused(copy, "cannot be read as a parquet table")
    parquet.write_bytes(kept)
    document.write_text(json.dumps(json.loads(described) | {"schema_version": SCHEMA_VERSION - 1}))
    refused(copy, "has schema version")
    document.write_text(described)
    pd.read_parquet(parquet).head(3).to_parquet(parquet)
    refused(copy, "is not the table")
    parquet.write_bytes(kept)
    document.write_text(described[:100])
    refused(copy, "is not valid JSON")
    document.write_text(described)
    Result("matrix", pd.read_parquet(parquet).drop(columns="regime"), {}).write(copy)
    refused(copy, "has no column regime")
    parquet.write_bytes(kept)
    document.write_text(described)
    (copy / "bad" / "direction.parquet").write_bytes(b"PAR1")
    refused(copy, r"direction\.parquet cannot be read as a parquet table")
    assert (copy / files.PAGE).read_bytes() == before
    assert not list(copy.glob(".report*"))


def test_a_model_cannot_point_out_of_its_run(copy: Path, tmp_path: Path) -> None:
    matrix = read_result(copy / "matrix.json")
    matrix.table["model"] = matrix.table["model"].replace({"bad": "../copy/bad"})
    matrix.write(copy)
    assert read_run(copy).models["../copy/bad"]  # inside after all
    matrix.table["model"] = matrix.table["model"].replace({"../copy/bad": "../../.."})
    matrix.write(copy)
    assert read_run(copy).models["../../.."] == {}


def test_sections_without_tables_are_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "bare", {"m": {"Q2_K": 20}})
    shutil.rmtree(path / "m")
    (path / "predict.json").unlink()
    (path / "predict.parquet").unlink()
    written = files.write(path)[0]
    sections = BeautifulSoup(written.read_text(encoding="utf-8"), "html.parser").find_all("section")
    assert [section["id"] for section in sections] == ["verdict", "matrix", "rtsi", "why", "provenance", "glossary"]
    assert not losses(read_run(path))[0].paired


def test_the_command(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "probes.report"]
    finished = subprocess.run([*command, str(run)], capture_output=True, text=True, timeout=300, check=True)
    assert finished.stdout.split() == [str(run / files.PAGE), str(run / files.SUMMARY)]
    finished = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr


@pytest.fixture(scope="module")
def browser(run: Path) -> Iterator[Page]:
    program = executable()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium), and $CHROMIUM names none")
    with chromium(program) as tab:
        tab.resize(1280, 900)
        tab.open(run / files.PAGE)
        yield tab


CELLS_IN_ORDER = "[...document.querySelector('table.matrix').tBodies[0].rows].map(r => r.cells[0].dataset.key)"
DELTAS = "[...document.querySelector('table.matrix').tBodies[0].rows].map(r => +r.cells[PLACE].dataset.key)"


def test_browser_loads_without_errors_or_requests(browser: Page, run: Path) -> None:
    assert browser.problems == []
    assert browser.requests == [(run / files.PAGE).resolve().as_uri()]
    assert browser.evaluate("document.title") == "two · Quantscope report"


def test_browser_shows_every_section(browser: Page) -> None:
    heights = browser.evaluate("[...document.querySelectorAll('main > section')].map(s => [s.id, s.offsetHeight])")
    assert [key for key, _ in heights] == list(SECTIONS)
    assert all(height > 100 for _, height in heights)


def test_browser_keeps_answers_as_text(browser: Page) -> None:
    texts = browser.evaluate("[...document.querySelectorAll('.answer')].map(p => p.textContent)")
    assert SCRIPT in texts
    assert any("</td></tr></table></section>" in text for text in texts)
    assert any(formatting.visible(ACTIVE) in text for text in texts)
    assert browser.evaluate("document.querySelectorAll('script').length") == 1
    assert browser.evaluate("document.querySelectorAll('img, iframe, object, embed, link[rel=stylesheet]').length") == 0
    assert browser.evaluate("document.querySelectorAll('main > section').length") == len(SECTIONS)


def test_browser_sorts_by_click_and_by_key(browser: Page) -> None:
    place = browser.evaluate(
        "[...document.querySelectorAll('table.matrix thead tr:last-child th')]"
        ".findIndex(h => h.dataset.name === 'Refuses')"
    )
    head = f"table.matrix thead tr:last-child th:nth-child({place + 1})"
    before = browser.evaluate(CELLS_IN_ORDER)
    browser.click(f"{head} button")
    rates = browser.evaluate(DELTAS.replace("PLACE", str(place)))
    assert rates == sorted(rates)
    browser.press("Enter", 13, "\r")
    rates = browser.evaluate(DELTAS.replace("PLACE", str(place)))
    assert rates == sorted(rates, reverse=True)
    assert browser.evaluate(f"document.querySelector({json.dumps(head)}).getAttribute('aria-sort')") == "descending"
    assert browser.evaluate("document.querySelectorAll('[aria-sort=none]').length") > 5
    browser.click("table.matrix thead tr:last-child th:first-child button")
    assert browser.evaluate(CELLS_IN_ORDER) == sorted(before, key=str.casefold)
    assert "Sorted by Cell, ascending" in browser.evaluate("document.getElementById('sorted').textContent")


def test_browser_selects_a_model(browser: Page) -> None:
    visible = "[...document.querySelector('table.matrix').tBodies[0].rows].filter(r => r.offsetHeight).length"
    assert browser.evaluate(visible) == 2 * (1 + len(CELLS))
    browser.click("#show-1")
    assert browser.evaluate(visible) == 1 + len(CELLS)
    browser.click("#show-all")
    assert browser.evaluate(visible) == 2 * (1 + len(CELLS))


def test_browser_shows_every_column_of_every_table_of_cells(browser: Page) -> None:
    browser.resize(1280, 900)
    browser.evaluate("document.querySelectorAll('#matrix details').forEach(d => d.open = true)")
    widths = browser.evaluate(
        "[...document.querySelectorAll('#matrix .scroll')].map(s => [s.clientWidth, s.scrollWidth])"
    )
    assert len(widths) == 4, "what is always shown, counting, wording and probes"
    assert all(0 < table <= room for room, table in widths), widths
    browser.evaluate("document.querySelectorAll('#matrix details').forEach(d => d.open = false)")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_browser_never_scrolls_sideways(browser: Page, width: int) -> None:
    browser.resize(width, 800)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.resize(1280, 900)


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_browser_shows_no_text_smaller_than_11_pixels(browser: Page, width: int) -> None:
    browser.resize(width, 800)
    in_figures = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.plot text')]"
        ".filter(t => t.getBoundingClientRect().width).map(t => {"
        "const s = t.closest('svg'); return parseFloat(getComputedStyle(t).fontSize) * "
        "s.getBoundingClientRect().width / s.viewBox.baseVal.width; }))"
    )
    elsewhere = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && "
        "[...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert in_figures >= 11
    assert elsewhere >= 11
    browser.resize(1280, 900)


def test_browser_opens_a_flip_by_keyboard(browser: Page) -> None:
    browser.evaluate("document.querySelector('#flips summary').focus()")
    assert browser.evaluate("document.querySelector('#flips details').open") is False
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.querySelector('#flips details').open") is True
