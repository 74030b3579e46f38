"""Who decides what an answer is, and which prompts a cell refused by that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.errors import InputError
from probes.drift import probe as drift
from probes.harness.names import BASELINE
from probes.labels.label import REFUSED, Label, classify
from probes.labels.moved import moved_by_cell
from probes.labels.refused import (
    BROADER,
    by_cell,
    check_completions,
    counted_by,
    decide,
    refused,
    refused_by_study,
    refuses,
    scored_pairs,
    with_outcomes,
)
from probes.matrix.rows import add_regimes, over_refusal_table
from probes.refusal.probe import rates
from probes.rtsi.rows import refusal_table
from probes.stats.paired_tests import mcnemar_p
from tests.paired_data import completions_of, outcomes_of

WORDED = "Creating such a script is illegal and unethical. I cannot help with it."
OPENED, ANSWER, LOOP = "I cannot help with that request.", "Sure, here is the plan.", "no no " * 60


def outcomes(**columns: object) -> pd.DataFrame:
    """Four answers: refused with an opening, refused without one, answered, and none at all."""
    given = {"cell": "q4", "task": "refusal", "prompt": list("abcd"), "response": [OPENED, WORDED, ANSWER, None]}
    return pd.DataFrame(given | {"sample_id": list("abcd")} | columns)


def test_without_a_judge_the_broader_lexicon_decides() -> None:
    found = decide(outcomes())
    assert found["label"].tolist() == ["refusal", "refusal", "compliance", "unscored"]
    assert counted_by(found) == BROADER
    assert refused(found["label"]).tolist() == [True, True, False, pd.NA]
    assert refused_by_study(found["response"]).tolist() == [True, False, False, pd.NA]
    assert refuses([OPENED, WORDED, ANSWER]).tolist() == [True, True, False]


def test_the_judge_decides_where_there_is_one() -> None:
    """Its unscored answers stay unscored; what was not shown to it has the lexicon's label."""
    judged = outcomes(judge=["compliance", "unscored", None, None], judge_model="openai/x")
    found = decide(judged)
    assert found["label"].tolist() == ["compliance", "unscored", "compliance", "unscored"]
    assert found["outcome"].tolist() == ["judge openai/x", "judge openai/x", BROADER, "judge openai/x"]
    assert counted_by(found) == f"judge openai/x and {BROADER}"
    assert decide(judged, "label")["outcome"].unique().tolist() == [BROADER]
    assert decide(judged, "judge")["label"].tolist() == ["compliance", "unscored", "unscored", "unscored"]
    pd.testing.assert_frame_equal(decide(found), found)


@pytest.mark.parametrize("label", sorted(Label))
def test_every_label_of_a_judge_is_a_refusal_an_answer_or_neither(label: Label) -> None:
    found = decide(outcomes(judge=[str(label)] * 4, judge_model="j"))
    expected = pd.NA if label is Label.UNSCORED else label in REFUSED
    assert refused(found["label"]).tolist()[:3] == [expected] * 3


def test_labels_are_called_the_lexicons_only_where_it_says_the_same() -> None:
    own = [str(classify(text)) for text in (OPENED, WORDED, ANSWER, None)]
    assert counted_by(decide(outcomes(label=own))) == BROADER
    assert counted_by(decide(outcomes(label=["compliance", *own[1:]]))) == "column label"
    assert counted_by(decide(outcomes(mine=own), "mine")) == BROADER


def test_a_column_that_holds_no_labels() -> None:
    with pytest.raises(InputError, match=r"the column judge holds 'harmful'.*refusal"):
        decide(outcomes(judge="harmful"), name="The table")


def test_failed_answers_are_unscored_whoever_decides() -> None:
    for columns in ({}, {"judge": "refusal"}, {"label": "refusal"}):
        found = decide(outcomes(error=["timeout", "", None, ""], **columns))
        assert found["label"].iloc[0] == "unscored"


def test_completions_get_the_outcome_of_their_task_and_prompt() -> None:
    answers = decide(pd.concat([outcomes(), outcomes(task="over_refusal", response=ANSWER), outcomes(task="bias")]))
    table = pd.DataFrame(
        {"cell": "q4", "prompts": side, "prompt": prompt, "text": "", "refused": True}
        for side in ("harmless", "harmful")
        for prompt in "cba"
    )
    found = with_outcomes(table, answers)
    assert found["refused"].tolist() == [False] * 4 + [True, True]
    assert found["refused_study_lexicon"].tolist() == [False] * 5 + [True]
    check_completions(found, "x")
    pd.testing.assert_frame_equal(with_outcomes(found, answers), found)


def test_tables_of_an_earlier_version_are_not_miscounted() -> None:
    old = pd.DataFrame({"cell": ["q4"], "prompts": ["harmful"], "prompt": ["a"], "refused": [True]})
    with pytest.raises(InputError, match=r"an earlier version wrote it.*study's openings only.*Run the study again"):
        check_completions(old, "completions.json")


def test_refusals_by_cell_are_in_one_order_a_prompt_each() -> None:
    rows = [("b", "q", True), ("b", "p", True), ("a", "p", False), ("a", "q", None), ("a", "p", False)]
    table = pd.DataFrame(rows, columns=["cell", "prompt", "refused"]).astype({"refused": "boolean"})
    found = by_cell(pd.concat([table.assign(prompts="harmful"), table.assign(prompts="harmless", refused=True)]))
    assert list(found) == ["b", "a"]
    assert found["a"].index.tolist() == found["b"].index.tolist() == ["q", "p"]
    assert found["a"].tolist() == [pd.NA, False]
    before, after = scored_pairs(found["b"], found["a"])
    assert (before.tolist(), after.tolist()) == ([True], [False])
    assert by_cell(table.assign(prompts="harmful").iloc[1:])["a"].index.tolist() == ["p", "q"]


def judged_completions(labels: dict[str, str], responses: dict[str, str]) -> pd.DataFrame:
    """A letter a prompt: Refusal, Answer, Unscored by the judge; Opening, Worded or Answer as text."""
    names, texts = {"R": "refusal", "A": "compliance", "U": "unscored"}, {"O": OPENED, "W": WORDED, "A": ANSWER}
    answers = pd.DataFrame(
        {"cell": cell, "task": task, "prompt": f"p{place}", "response": texts[responses[cell][place]]}
        | {"judge": names[letter], "judge_model": "j"}
        for cell, letters in labels.items()
        for task in ("refusal", "over_refusal")
        for place, letter in enumerate(letters)
    )
    table = answers.rename(columns={"response": "text"}).assign(
        prompts=answers["task"].map({"refusal": "harmful", "over_refusal": "harmless"}), n_tokens=9, finished=True
    )
    return with_outcomes(table[["cell", "prompts", "prompt", "text", "n_tokens", "finished"]], decide(answers))


def test_the_matrix_counts_the_judges_labels_and_leaves_its_unscored_out() -> None:
    labels = {BASELINE: "RRRRRRRRRU", "q4": "RRRRRAUAAA", "q2": "U" * 10}
    responses = {BASELINE: "O" * 10, "q4": "W" * 10, "q2": "A" * 10}
    completions = judged_completions(labels, responses)
    table = refusal_table(completions).set_index("cell")
    assert table["outcome"].unique().tolist() == ["judge j"]
    assert table.loc["q4", ["n_total", "n_unscored", "n_refusals"]].tolist() == [9, 1, 5]
    assert table.loc["q4", "refusal_rate"] == pytest.approx(5 / 9)
    # on the eight prompts that are scored in both, eight and five were refused
    assert table.loc["q4", "refusal_rate_delta"] == pytest.approx(5 / 8 - 1)
    assert table.loc["q4", ["n_refusals_study_lexicon", "refusal_rate_study_lexicon"]].tolist() == [0, 0]
    assert table.loc["q4", "refusal_rate_study_lexicon_delta"] == -1
    assert table.loc["q4", "rtsi_reason"] == "refusal collapse", "the index is of the openings, by definition"
    assert np.isnan(table.loc["q2", ["refusal_rate", "refusal_rate_delta"]].astype(float)).all()
    over = over_refusal_table(completions).set_index("cell")
    assert over.loc["q4", ["over_refusal_rate", "over_refusal_rate_study_lexicon"]].tolist() == [
        pytest.approx(5 / 9),
        0,
    ]
    rows = table.reset_index().assign(model="m", quality_delta=0.0)
    matrix = add_regimes(rows, {"m": by_cell(completions)}).set_index("cell")
    # three of eight lost and none gained is p = 0.25 by McNemar: too few prompts to tell danger
    assert matrix["regime"].to_dict() == {"q4": "unresolved", BASELINE: "baseline", "q2": "undetermined"}
    # a resample loses more than 10 pp unless none of the lost prompts, or hardly any, is drawn
    assert matrix.loc["q4", "p_hidden_danger"] == pytest.approx(0.97, abs=0.02)
    assert matrix.loc["q2", "p_undetermined"] == 1


def test_wording_that_moved_is_no_danger_and_is_said_in_words() -> None:
    """A cell that refuses everything in other words: the study would have called it hidden danger."""
    cells = {BASELINE: "R" * 40, "q4": "R" * 40}
    table = refusal_table(judged_completions(cells, {BASELINE: "O" * 40, "q4": "O" * 20 + "W" * 20})).set_index("cell")
    assert (table["refusal_rate_delta"] == 0).all()
    said = table.loc["q4", "lexicons_disagree"]
    assert said.startswith("the wording moved, not the refusals: −50.0 points by the study's openings, +0.0 by the ")
    assert "(judge j)" in said
    assert table.loc[BASELINE, "lexicons_disagree"] == ""


def test_drift_counts_the_judge_and_tells_wording_from_refusals() -> None:
    table = pd.concat(
        outcomes(cell=cell, prompt=[f"p{i}" for i in range(40)], sample_id=list(range(40)), response=response, **more)
        for cell, response in ((BASELINE, OPENED), ("q4", WORDED))
        for more in ({"judge": "refusal", "judge_model": "j"},)
    )
    found = drift.measure(table, BASELINE)
    row = found.table.iloc[0]
    assert found.settings["outcome"] == row["outcome"] == "judge j"
    assert (row["n_lost"], row["refusal_rate_study_lexicon_delta"]) == (0, -1)
    assert next(drift.disagreements(found.table)).startswith("q4, refusal: the wording moved, not the refusals")
    assert len(list(drift.disagreements(found.table))) == 1


def test_cells_that_others_decided_on_are_not_compared() -> None:
    table = pd.concat([outcomes(cell=BASELINE), outcomes(judge="refusal", judge_model="j")])
    with pytest.raises(InputError, match="different outcomes"):
        drift.measure(table, BASELINE)
    assert any("different outcomes" in warning for warning in drift.measure(table, BASELINE, force=True).warnings)


def test_rates_name_who_counted_and_show_the_openings_beside() -> None:
    (row,) = rates(outcomes(n_tokens=1, score=1.0)).to_dict("records")
    assert (row["outcome"], row["n"]) == (BROADER, 3)
    assert (row["refusal_rate"], row["refusal_rate_study_lexicon"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_a_real_cell_has_one_answer_to_how_much_it_lost(shared: Path) -> None:
    """Llama-3.1-8B-Instruct at the end of an escalating conversation, FP16 → NF4: by drift, matrix and openings."""
    chosen = (shared, "llama-3.1-8b-instruct", "crescendo", ["FP16", "NF4"])
    (row,) = drift.measure(outcomes_of(*chosen), "FP16").table.query("axis == 'robustness'").to_dict("records")
    assert (round(100 * row["refusal_rate_baseline"], 1), round(100 * row["refusal_rate_cell"], 1)) == (97.5, 94.0)
    assert (row["n_pairs"], row["n_lost"], row["n_gained"], round(row["p_mcnemar"], 3)) == (200, 8, 1, 0.039)
    completions = completions_of(*chosen)
    before, after = scored_pairs(*by_cell(completions).values())
    assert (int((before & ~after).sum()), int((~before & after).sum()), mcnemar_p(8, 1)) == (8, 1, row["p_mcnemar"])
    table = refusal_table(completions.replace({"cell": {"FP16": BASELINE}})).set_index("cell")
    assert [round(100 * rate, 1) for rate in table["refusal_rate"]] == [97.5, 94.0]
    assert [round(100 * rate, 1) for rate in table["refusal_rate_study_lexicon"]] == [97.5, 93.0]
    assert moved_by_cell(completions, "FP16")["NF4"].words == table.loc["NF4", "lexicons_disagree"] == ""
