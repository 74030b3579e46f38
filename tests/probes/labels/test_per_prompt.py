"""Several answers to one prompt are one observation."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import refusal
from probes.labels.label import REFUSED, Label
from probes.labels.per_prompt import per_prompt, refused_by_prompt, repeats_said
from probes.refusal.controls import flips

LABELS = st.lists(st.lists(st.sampled_from(list(Label)), min_size=1, max_size=5), min_size=1, max_size=8)


def asked(labels: list[list[Label]], cell: str = "fp16") -> pd.DataFrame:
    """Epochs of prompts."""
    return pd.DataFrame(
        {"cell": cell, "task": "refusal", "sample_id": f"s{place}", "epoch": epoch, "prompt_sha256": f"sha{place}"}
        | {"label": str(label), "response": str(label), "score": 0.0, "n_tokens": 3}
        for place, epochs in enumerate(labels)
        for epoch, label in enumerate(epochs)
    )


def refuses(epochs: list[Label]) -> bool | None:
    """Written out: most of the scored answers; on a tie the first; None without any."""
    votes = [label in REFUSED for label in epochs if label is not Label.UNSCORED]
    if not votes:
        return None
    return votes[0] if 2 * sum(votes) == len(votes) else 2 * sum(votes) > len(votes)


@settings(max_examples=25, deadline=None)
@given(LABELS)
def test_a_row_a_prompt_as_most_answers_are(labels: list[list[Label]]) -> None:
    found = per_prompt(asked(labels))
    assert found["sample_id"].tolist() == [f"s{place}" for place in range(len(labels))]
    assert found["n_answers"].tolist() == [len(epochs) for epochs in labels]
    said = [None if label == Label.UNSCORED else label in REFUSED for label in found["label"]]
    assert said == [refuses(epochs) for epochs in labels]
    assert bool(repeats_said(found)) == any(len(epochs) > 1 for epochs in labels)
    pd.testing.assert_frame_equal(per_prompt(found), found.assign(n_answers=1))


def test_samples_are_known_by_their_prompts_within_a_task() -> None:
    table = asked([[Label.REFUSAL], [Label.REFUSAL], [Label.COMPLIANCE]]).assign(prompt_sha256=["x", "x", "y"])
    assert per_prompt(table)["sample_id"].tolist() == ["s0", "s2"]
    assert len(per_prompt(table.assign(task=["a", "b", "a"]))) == 3
    assert len(per_prompt(table.assign(prompt_sha256=[None, "", "y"]))) == 3, "unknown prompts are not the same one"
    assert len(per_prompt(table.drop(columns="prompt_sha256").assign(prompt=["p", "p", "q"]))) == 2
    other = table.assign(prompt_sha256=["a", "b", "c"], cell="q4")
    assert per_prompt(other, like=table)["sample_id"].tolist() == ["s0", "s2"], "a cell goes by its baseline's prompts"


def test_rates_and_flips_count_prompts() -> None:
    once, epochs = [[Label.REFUSAL]] * 6 + [[Label.COMPLIANCE]] * 2, 3
    thrice = [labels * epochs for labels in once]
    pd.testing.assert_frame_equal(refusal.rates(asked(thrice)), refusal.rates(asked(once)))
    second = [[Label.COMPLIANCE] * epochs, *thrice[1:]]
    found = flips(asked(thrice), asked(second))
    assert (found["n"], found["n_flips"], found["n_responses_changed"]) == (8, 1, 1)


def test_refusals_by_prompt() -> None:
    rows = [("a", "p", True), ("a", "p", False), ("a", "p", False), ("a", "q", True), ("a", "q", False), ("b", "q", 1)]
    found = refused_by_prompt(pd.DataFrame(rows, columns=["cell", "prompt", "refused"]))
    assert found["a"].tolist() == [False, True], "most answers; on a tie the first"
    assert found.loc["q", "b"]
    assert pd.isna(found.loc["p", "b"])
    unscored = pd.DataFrame(
        [("a", "p", None), ("a", "p", True), ("a", "q", None)], columns=["cell", "prompt", "refused"]
    )
    assert refused_by_prompt(unscored)["a"].tolist() == [True, pd.NA], "what is unscored has no vote"


@pytest.mark.parametrize("like", [None, asked([[Label.REFUSAL]])])
def test_no_outcomes(like: pd.DataFrame | None) -> None:
    assert per_prompt(asked([[Label.REFUSAL]]).iloc[:0], like).empty
