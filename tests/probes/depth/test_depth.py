"""Depth: margins and KL at later tokens, against numbers of one prompt at a time and a cell that is damaged there."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from interp import HookedModel, load
from interp.errors import InputError
from interp.generation import Answer
from probes import depth
from probes.depth import __main__ as command
from probes.depth.forced import REFUSAL, Prefilled, kl, log_probabilities, margin, prefilled
from probes.depth.probe import HOLDS, LATER, DepthResult, Observed, _verdict
from probes.depth.settings import UNKNOWN
from probes.harness.results import read_result
from probes.margin.openings import lexicon_openings
from probes.margin.refusal_margin import margins
from tests.cells import HARMFUL, HARMLESS, q8_0

TEXTS = list(HARMFUL.instructions)


@pytest.fixture(scope="module")
def baseline(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


def measured(baseline: HookedModel, cell: HookedModel) -> DepthResult:
    return depth.measure(baseline, {"cell": cell}, HARMFUL, HARMLESS, positions=4, openings="lexicon")


def test_a_cell_equal_to_its_baseline_holds_at_every_position(
    baseline: HookedModel, tiny: Callable[[str], Path]
) -> None:
    result = measured(baseline, load(tiny("llama")))
    assert "how refusals begin" in result.warnings[-1]
    assert (result.table[["kl", "shift"]] == 0).all(axis=None)
    assert len(result.table) == 2 * 2 * 4
    assert result.cells.table["verdict"].tolist() == [HOLDS]


def test_damage_that_only_later_tokens_see_is_found(
    baseline: HookedModel, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding of a token moves with which one opening begins, the least probable of all."""
    monkeypatch.setattr("probes.depth.probe._most_usual", lambda _: 0)
    token = lexicon_openings(baseline.tokenizer).sequences[0][0]
    assert not any(token in ids for side in (HARMFUL, HARMLESS) for ids in baseline.token_ids(side.instructions))
    noise = torch.randn(baseline.config.hidden_size, generator=torch.Generator().manual_seed(0))
    verdicts = []
    for sign in (1, -1):
        cell = load(tiny("llama"))
        embedding = cell.hf.get_input_embeddings().weight
        embedding.data[token] += sign * 3 * embedding.std() * noise
        result = measured(baseline, cell)
        row = result.cells.table.iloc[0]
        assert row["first"] == 0
        assert result.table.query("position > 1 and begun == 'refusal'")["kl"].min() > 1e-6
        verdicts.append(row["verdict"])
    assert LATER in verdicts


def _seen(*margins: list[float]) -> Observed:
    """Margins of harmful prompts at each position of a begun refusal."""
    return {
        (REFUSAL, "harmful", place): (torch.tensor(each), torch.zeros(len(each))) for place, each in enumerate(margins)
    }


@pytest.mark.parametrize(
    ("cell", "baseline", "reason"),
    [
        (([-9.0], [-9.0]), ([9.0], [9.0]), "a test needs two prompts"),
        (([-9.0, -8.0], [nan, nan]), ([9.0, 9.0], [nan, nan]), "ended all answers after their first token"),
        (([-9.0, -8.0], [-9.0, nan]), ([9.0, 9.0], [9.0, nan]), "a test needs two prompts"),
    ],
    ids=["one prompt", "answers of one token", "one goes on"],
)
def test_what_no_test_can_tell_is_no_verdict(cell: list[float], baseline: list[float], reason: str) -> None:
    row = _verdict("cell", _seen(*cell), _seen(*baseline), 2)
    assert row["verdict"] == UNKNOWN
    assert reason in row["reason"]
    assert not np.isinf(row["later"])
    assert row["first"] < -17


def test_positions_are_those_of_the_answer_so_far(baseline: HookedModel) -> None:
    """The second forced token, from a forward pass over one prompt and the first one."""
    given = Prefilled("refusal", baseline.token_ids(TEXTS), [[5, 9, 7]] * len(TEXTS))
    openings = lexicon_openings(baseline.tokenizer)
    next_token = log_probabilities(baseline, given, 3)[:, 1]
    values = margin(baseline, given, 1, openings, next_token)
    for row, ids in enumerate(given.prompts):
        with torch.no_grad():
            logits = baseline.hf(input_ids=torch.tensor([[*ids, 5]])).logits[0, -1].double()
        probabilities = logits.softmax(0)
        torch.testing.assert_close(next_token[row].double().exp(), probabilities, atol=1e-6, rtol=1e-4)
        assert values[row].item() == pytest.approx(torch.logit(probabilities[9]).item(), abs=1e-4)
    first = margin(baseline, given, 0, openings, log_probabilities(baseline, given, 3)[:, 0])
    np.testing.assert_allclose(first, margins(baseline, TEXTS, openings), atol=1e-5)


def test_kl_is_that_of_torch() -> None:
    p, q = (torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).log_softmax(1) for seed in (0, 1))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(kl(p, q), expected.double(), atol=1e-6, rtol=1e-5)


def test_the_baseline_goes_on_after_the_prefill(baseline: HookedModel) -> None:
    given = prefilled(baseline, TEXTS, "answer", [5, 9], 4)
    for ids, forced in zip(given.prompts, given.forced, strict=True):
        assert forced[:2] == [5, 9]
        with torch.no_grad():
            logits = baseline.hf(input_ids=torch.tensor([[*ids, 5, 9]])).logits[0, -1]
        assert len(forced) <= 4
        assert len(forced) == 2 or forced[2] == int(logits.argmax())


def test_an_answer_that_ended_before_has_no_number(baseline: HookedModel) -> None:
    given = Prefilled("refusal", baseline.token_ids(TEXTS), [[5, 9], [5], [5, 9], [5, 9]])
    values = log_probabilities(baseline, given, 3)
    assert values[:, 1].isnan().all(1).tolist() == [False, True, False, False]
    assert values[:, 2].isnan().all()


def test_positions_beyond_all_answers(baseline: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.depth.forced.generate", lambda _, prompts, n: [Answer([], True)] * len(prompts))
    cells = {"cell": baseline}
    result = depth.measure(baseline, cells, HARMFUL, HARMLESS, positions=9, prefill="Sure", openings="lexicon")
    beyond = result.table.query("position == 9")
    assert (beyond["n"] == 0).all()
    assert set(beyond["reason"]) == {"the baseline has ended all answers before"}


def test_bad_options(baseline: HookedModel, tiny: Callable[[str], Path]) -> None:
    cells = {"cell": load(tiny("llama"))}
    with pytest.raises(InputError, match="positions"):
        depth.measure(baseline, cells, HARMFUL, HARMLESS, positions=1)
    with pytest.raises(InputError, match="no tokens"):
        depth.measure(baseline, cells, HARMFUL, HARMLESS, prefill="")


def test_from_the_shell(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cell = q8_0(tiny("llama"), tmp_path / "q8.gguf")
    options = ["--baseline", tiny("llama"), "--quantized", cell, "--limit", 5, "--positions", 3]
    done = CliRunner().invoke(command.app, [*map(str, options), "--openings", "lexicon", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert read_result(tmp_path / "depth.json").table["kl"].max() < 0.1
    assert read_result(tmp_path / "depth_cells.json").table["cell"].tolist() == ["q8"]
    assert "where a refusal has begun" in done.output
