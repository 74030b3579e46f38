"""The direction's rescue, against one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from interp.generation import answers, complete
from probes.causal.direction_rescue import Side, Sweep, _rescued_answers, rescue_rows
from probes.geometry.subspaces import refusal_subspace
from probes.labels.refused import READ_TOKENS
from probes.margin.refusal_margin import MarginRuns, refusal_margin
from tests.exchanges import HARMFUL, HARMLESS, OPENINGS, baseline, noisy

HOOK = "blocks.1.hook_resid_post"


def test_each_prompt_gets_its_own_component_from_its_last_token_on() -> None:
    ours = baseline()
    theirs = noisy(ours)
    sides = [
        Side(name, texts, MarginRuns.of(ours, texts, OPENINGS, 3))
        for name, texts in (("harmful", HARMFUL), ("harmless", HARMLESS))
    ]
    contrast = {"harmful": HARMFUL, "harmless": HARMLESS}
    sweep = Sweep([1], scales=(0.0, 2.0), components=2, draws=2, answer_layer=1)
    rows = rescue_rows(ours, theirs, contrast, sides, sweep)
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        if row["scale"] == 0:
            assert row["gain"] == row["random_gain"] == row["added_norm"] == 0
            assert row["refusal_rate"] == row["refusal_start"] == row["random_refusal_rate"]
    for row in rows:
        assert row["draws"] == 2
        assert row["random_gain_low"] <= row["random_gain"] <= row["random_gain_high"]
        assert row["random_gain"] == pytest.approx((row["random_gain_low"] + row["random_gain_high"]) / 2)
        towards = 1 if row["goal"] > row["start"] else -1
        far = sum(towards * row[f"random_gain_{end}"] >= towards * row["gain"] - 1e-9 for end in ("low", "high"))
        assert row["p"] == (1 + far) / 3
    assert {row["p"] for row in rows if row["scale"] == 0} == {1.0}
    taught = [ours.activations(texts, [HOOK])[HOOK] for texts in (HARMFUL, HARMLESS)]
    basis = refusal_subspace(*taught, components=2)
    expected = []
    for text in HARMFUL:
        gap = (ours.activations([text], [HOOK])[HOOK] - theirs.activations([text], [HOOK])[HOOK]).double()
        vector = 2 * (gap @ basis @ basis.T)[0].float()
        ids = torch.tensor(theirs.token_ids([text]))
        last = ids.shape[1] - 1

        def add(own: torch.Tensor, last: int = last, vector: torch.Tensor = vector) -> torch.Tensor:
            new = own.clone()
            new[:, last:] += vector
            return new

        with theirs.intervene({HOOK: add}), torch.no_grad():
            expected.append(refusal_margin(theirs, ids, torch.ones_like(ids), OPENINGS).item())
    (found,) = [r for r in rows if (r["vector"], r["scale"], r["prompts"]) == ("subspace", 2.0, "harmful")]
    assert found["margin"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert found["rank"] == 3


def test_more_random_draws_where_answers_are_generated() -> None:
    ours = baseline()
    side = Side("harmful", HARMFUL, MarginRuns.of(ours, HARMFUL, OPENINGS))
    sweep = Sweep([0, 1], scales=(1.0,), components=1, draws=1, answer_layer=1, answer_layer_draws=4)
    rows = rescue_rows(ours, noisy(ours), {"harmful": HARMFUL, "harmless": HARMLESS}, [side], sweep)
    assert {row["layer"]: row["draws"] for row in rows} == {0: 1, 1: 4}


def test_answers_get_the_vector_of_their_own_prompt_although_others_leave_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some answers end early, so rows move up; every prompt's text is as if it were alone."""
    cell = baseline()
    vectors = 4 * torch.randn(len(HARMFUL), 32, generator=torch.Generator().manual_seed(0))
    alone, seen = [], []
    for text, vector in zip(HARMFUL, vectors, strict=True):

        def add(own: torch.Tensor, vector: torch.Tensor = vector) -> torch.Tensor:
            new = own.clone()
            new[:, -1] += vector
            return new

        with cell.intervene({HOOK: add}):
            alone += answers(cell, [text], READ_TOKENS)
    cell.hf.generation_config.eos_token_id = [1, alone[2].tokens[3]]
    ended = []
    for text, vector in zip(HARMFUL, vectors, strict=True):
        with cell.intervene({HOOK: lambda own, vector=vector: torch.cat([own[:, :-1], own[:, -1:] + vector], 1)}):
            ended += complete(cell, [text], READ_TOKENS)

    def remembered(model: object, texts: list[str], limit: int, computing: object) -> list:
        seen.extend(complete(model, texts, limit, computing=computing))
        return seen

    monkeypatch.setattr("probes.causal.exchange.complete", remembered)
    _rescued_answers(cell, HARMFUL, 1, vectors)
    assert seen == ended
    assert len({answer.n_tokens for answer in seen}) > 1
