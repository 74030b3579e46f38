"""Newcombe's interval of a paired difference of rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from interp.errors import InputError
from probes.stats.paired_tests import delta_interval, unpaired_interval


def outcomes(both: int, cell_only: int, baseline_only: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """(baseline, cell) with such counts of prompts."""
    counts = [both, cell_only, baseline_only, neither]
    return np.repeat([1, 0, 1, 0], counts).astype(bool), np.repeat([1, 1, 0, 0], counts).astype(bool)


def test_the_published_example() -> None:
    # Newcombe (1998), table III, method 10, for 36, 12, 2 and 0 pairs: 0.0569 to 0.3404.
    found = delta_interval(*outcomes(36, 12, 2, 0))
    assert found.value == pytest.approx(0.2)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0569, 0.3404)


def test_cell_and_baseline_change_the_sign() -> None:
    there, back = delta_interval(*outcomes(60, 3, 11, 20)), delta_interval(*outcomes(60, 11, 3, 20))
    assert there.value < 0
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))


def test_no_flip_still_has_a_width() -> None:
    found = delta_interval(*outcomes(118, 0, 0, 10))
    assert found.low < 0 < found.high
    assert found.high < 0.05


@pytest.mark.parametrize("probabilities", [(0.8, 0.02, 0.08, 0.1), (0.5, 0.1, 0.2, 0.2)])
def test_it_covers_the_truth_as_often_as_it_says(probabilities: tuple[float, ...]) -> None:
    n, covered = 16, 0.0
    truth = probabilities[1] - probabilities[2]
    counts = [(a, b, c, n - a - b - c) for a in range(n + 1) for b in range(n + 1 - a) for c in range(n + 1 - a - b)]
    chances = stats.multinomial.pmf(counts, n, probabilities)
    for count, chance in zip(counts, chances, strict=True):
        if chance > 1e-4:
            interval = delta_interval(*outcomes(*count))
            covered += chance * (interval.low <= truth <= interval.high)
    assert 0.93 < covered <= 1


def test_other_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="3 and 2 outcomes"):
        delta_interval(np.ones(3, dtype=bool), np.ones(2, dtype=bool))


def test_the_published_example_of_two_independent_rates() -> None:
    # Newcombe (1998), Statistics in Medicine 17, 873–890, table II, method 10: 56/70 − 48/80 is 0.0524 to 0.3339.
    found = unpaired_interval((56 / 70, 70), (48 / 80, 80))
    assert found.value == pytest.approx(0.2)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)


def test_a_rate_that_is_none_is_refused() -> None:
    for cell in ((1.2, 10), (0.5, 0)):
        with pytest.raises(InputError, match="rates in"):
            unpaired_interval(cell, (0.5, 10))
