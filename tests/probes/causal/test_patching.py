"""Activation patching, against the models themselves and loops over tokens."""

from __future__ import annotations

import torch

from interp.chat import render
from probes.attribution.parts import Parts
from probes.causal.activation_patching import ALL, CLASSES, NO_TOKENS, SITES, Span, patch_rows
from probes.causal.exchange import Interventions
from probes.harness.token_positions import Position, position_classes
from probes.margin.refusal_margin import MarginRuns
from tests.exchanges import HARMFUL, OPENINGS, baseline, noisy

START, WORDS, END = Position.START, Position.INSTRUCTION, Position.END


def templated(everything: bool = False, template: str = "auto", same: bool = False) -> tuple[Interventions, list]:
    ours = baseline()
    texts = render(ours.tokenizer, HARMFUL, template).texts
    theirs = ours if same else noisy(ours, everything=everything)
    runs = MarginRuns.of(ours, texts, OPENINGS, 3)
    return Interventions(ours, theirs, runs, texts, Parts.of(ours)), position_classes(ours.tokenizer, texts, HARMFUL)


def test_the_last_residual_stream_is_the_baseline() -> None:
    """With the final norm and the unembedding unchanged nothing else is left; the baseline's own effects are all 0."""
    models, classes = templated()
    rows = patch_rows(models, classes, [0, 2])
    assert len(rows) == 2 * len(SITES) * len(CLASSES)
    (last,) = [r for r in rows if (r["layer"], r["site"], r["positions"]) == (2, "hook_resid_post", ALL)]
    assert last["margin"] == last["goal"] != last["start"]
    assert last["distance"] == 0 < last["shuffled_distance"]
    (early,) = [r for r in rows if (r["layer"], r["site"], r["positions"]) == (2, "hook_resid_post", "instruction")]
    assert early["gain"] == 0  # what stands before the last token is not read any more
    first = {r["positions"]: r["gain"] for r in rows if (r["layer"], r["site"]) == (0, "hook_resid_pre")}
    assert set(first.values()) == {0.0}  # the embeddings are equal


def test_a_models_own_activations_change_nothing() -> None:
    models, classes = templated(same=True)
    for row in patch_rows(models, classes, [1]):
        assert row["gain"] == row["distance"] == 0
    assert {row["positions"] for row in patch_rows(models, classes, [1])} == set(CLASSES)


def test_raw_text_has_no_end_of_template() -> None:
    models, classes = templated(template="none")
    rows = patch_rows(models, classes, [1])
    assert {row["reason"] for row in rows if row["positions"] == "end"} == {NO_TOKENS}
    assert all("gain" in row for row in rows if row["positions"] != "end")


def test_tokens_are_put_where_they_belong() -> None:
    """The second row has more of the instruction than the first, which lends it its first token again."""
    classes = [[START, WORDS, WORDS, END], [START, *[WORDS] * 4, END]]
    own, other = torch.zeros(2, 7, 1), torch.arange(14.0).view(2, 7, 1)  # the seventh token is read after the prompt
    swapped, same = torch.tensor([1, 0]), torch.arange(2)
    instruction, end, everything = (Span.of(name, classes) for name in CLASSES)
    assert instruction.put(own, other, swapped)[..., 0].tolist() == [[0, 10, 11, 0, 0, 0, 0], [0, 1, 1, 1, 2, 0, 0]]
    assert end.put(own, other, swapped)[..., 0].tolist() == [[0, 0, 0, 12, 0, 0, 0], [0, 0, 0, 0, 0, 3, 0]]
    assert torch.equal(everything.put(own, other, same), other)
    put = everything.put(own, other, swapped)[..., 0]
    assert put[0].tolist() == [9, 10, 11, 12, 13, 13, 13]  # the last by the last, and what follows by what follows
    assert put[1].tolist() == [0, 0, 0, 1, 2, 3, 4]
