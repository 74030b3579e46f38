"""Calibration against scikit-learn and scipy one-offs, and the probe on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from interp import load
from interp.errors import InputError
from probes.calibration import probe as calibration
from tests.cells import HARMFUL, HARMLESS, Noisy, q8_0


def sklearn_ece(probability: np.ndarray, correct: np.ndarray) -> float:
    accuracy, confidence = calibration_curve(correct, probability, n_bins=10, strategy="uniform")
    counts = np.histogram(np.searchsorted(np.linspace(0, 1, 11)[1:-1], probability), bins=np.arange(11))[0]
    return float(np.sum(counts[counts > 0] / len(probability) * np.abs(accuracy - confidence)))


@pytest.mark.parametrize("seed", range(5))
def test_ece_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability = np.concatenate([rng.uniform(size=97), [0.1, 0.5, 1.0]])
    correct = rng.uniform(size=100) < probability**2
    found = calibration.expected_calibration_error(torch.tensor(probability), torch.tensor(correct))
    assert found == pytest.approx(sklearn_ece(probability, correct), abs=1e-12)


def test_ece_of_perfect_and_of_worst_confidence() -> None:
    yes, no = torch.ones(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    assert calibration.expected_calibration_error(torch.ones(8), yes) == 0.0
    assert calibration.expected_calibration_error(torch.ones(8), no) == 1.0


def test_ece_keeps_bins_apart() -> None:
    """Too sure in one bin and too unsure in another do not cancel."""
    probability = torch.tensor([0.25] * 4 + [0.75] * 4)
    correct = torch.tensor([True, True, False, False] * 2)
    assert calibration.expected_calibration_error(probability, correct) == pytest.approx(0.25)


@pytest.mark.parametrize("vocabulary", [3, 50])
def test_confidence_against_numpy(vocabulary: int) -> None:
    logits = np.random.default_rng(0).normal(scale=3, size=(20, vocabulary))
    p = softmax(logits, axis=-1)
    expected = [
        p.argmax(-1),
        p.max(-1),
        np.sort(p, axis=-1)[:, -5:].sum(-1),
        1 - (p**2).sum(-1),
        np.ptp(logits, axis=-1),
    ]
    np.testing.assert_allclose(calibration.confidence(torch.tensor(logits)).T, expected, rtol=1e-12)


def test_table(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tiny("llama")
    baseline, cell = load(checkpoint), load(q8_0(checkpoint, tmp_path / "cell.gguf"), like=checkpoint)
    refusals = {"q8": [True, False, True, True]}
    table = calibration.measure(baseline, {"q8": cell}, HARMFUL, HARMLESS, refusals=refusals, template="none").table
    logits = {name: m.logits(HARMFUL.instructions).double().numpy() for name, m in {"b": baseline, "q8": cell}.items()}
    p = {name: softmax(values, axis=-1) for name, values in logits.items()}
    row = table[(table["cell"] == "q8") & (table["prompts"] == "harmful")].iloc[0]
    agrees = logits["b"].argmax(-1) == logits["q8"].argmax(-1)
    assert row["top1"] == pytest.approx(p["q8"].max(-1).mean(), rel=1e-6)
    assert row["confidence_shift"] == pytest.approx((p["q8"].max(-1) - p["b"].max(-1)).mean(), abs=1e-8)
    assert row["agreement"] == agrees.mean()
    assert row["ece_fidelity"] == pytest.approx(sklearn_ece(p["q8"].max(-1), agrees), abs=1e-6)
    assert row["ece_refusal"] == pytest.approx(sklearn_ece(p["q8"].max(-1), np.array(refusals["q8"])), abs=1e-6)
    assert table[table["prompts"] == "harmless"]["ece_refusal"].isna().all()
    assert table[table["cell"] == "baseline"]["ece_refusal"].isna().all()
    assert table[table["cell"] == "baseline"]["agreement"].eq(1.0).all()


def test_a_cell_without_agreement(tiny: Callable[[str], Path]) -> None:
    """A final norm turned around makes the least probable token the most probable one."""
    baseline = load(tiny("llama"))
    cell = Noisy(baseline, {"ln_final.hook_normalized": torch.neg})
    table = calibration.measure(baseline, {"turned": cell}, HARMFUL, HARMLESS).table
    turned = table[table["cell"] == "turned"]
    assert turned["agreement"].eq(0.0).all()
    assert turned["ece_fidelity"].tolist() == pytest.approx(turned["top1"].tolist(), abs=1e-12)


def test_refusals_come_from_the_runners_table_in_the_order_of_the_prompts() -> None:
    labels = dict(zip(HARMFUL.instructions, ["refusal", "compliance", "partial_refusal", "degenerate"], strict=True))
    rows = [{"cell": "q8", "prompt": prompt, "label": label} for prompt, label in labels.items()]
    outcomes = pd.DataFrame([{"cell": "q8", "prompt": "another task's", "label": "refusal"}, *reversed(rows)])
    assert calibration.refusals_from(outcomes, HARMFUL) == {"q8": [True, False, True, False]}
    unscored = outcomes.replace({"label": {"degenerate": "unscored"}})
    assert calibration.refusals_from(unscored, HARMFUL) == {"q8": [True, False, True, None]}
    with pytest.raises(InputError, match="lack answers to 1 harmful"):
        calibration.refusals_from(outcomes.drop(index=2), HARMFUL)
    with pytest.raises(InputError, match="lack answers"):
        calibration.refusals_from(outcomes.iloc[:1], HARMFUL)
    with pytest.raises(InputError, match="no column prompt"):
        calibration.refusals_from(outcomes.drop(columns="prompt"), HARMFUL)


def test_refusals_of_an_unknown_cell_are_refused(tiny: Callable[[str], Path]) -> None:
    model = load(tiny("llama"))
    with pytest.raises(InputError, match=r"'q9'.*only of baseline, c"):
        calibration.measure(model, {"c": model}, HARMFUL, HARMLESS, refusals={"q9": [True] * 4})


def test_refusals_must_match_the_prompts(tiny: Callable[[str], Path]) -> None:
    baseline = load(tiny("llama"))
    with pytest.raises(InputError, match="3 refusal outcomes"):
        calibration.measure(baseline, {"c": baseline}, HARMFUL, HARMLESS, refusals={"c": [True] * 3})
