"""What so many prompts can show, against scipy's binomial distribution and a plain search."""

from __future__ import annotations

from math import ceil, isnan

import pytest
from scipy.stats import binom
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from probes.stats.paired_tests import minimum_detectable_effect
from probes.stats.power import (
    POWER,
    detectable_drop,
    detectable_flip_rate,
    prompts_at_risk,
    prompts_for_drop,
    prompts_for_loss,
)


@pytest.mark.parametrize("n", [1, 7, 32, 115])
def test_the_detectable_rate_shows_in_four_of_five_samples(n: int) -> None:
    assert binom.sf(0, n, detectable_flip_rate(n)) == pytest.approx(POWER, abs=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05, 0.2, 0.5, 0.79, 0.9, 1.0])
def test_one_prompt_fewer_would_not_do(rate: float) -> None:
    n = prompts_at_risk(rate)
    assert binom.sf(0, n, rate) >= POWER - 1e-12
    assert n == 1 or binom.sf(0, n - 1, rate) < POWER


def test_no_number_of_prompts_shows_that_nothing_flips() -> None:
    assert prompts_at_risk(0.0) == 0
    assert prompts_for_loss(0.0, 0.1) == 0


@pytest.mark.parametrize("discordant", [0.0, 0.05, 0.125, 0.3, 0.7])
@pytest.mark.parametrize("loss", [0.05, 0.1, 0.2])
def test_the_fewest_prompts_that_find_a_loss(loss: float, discordant: float) -> None:
    sizes = (n for n in range(1, 3000) if minimum_detectable_effect(n, discordant) <= loss)
    assert prompts_for_loss(loss, discordant) == next(sizes)


def test_connor_1987() -> None:
    """n = (1.96 √ψ + 0.8416 √(ψ − δ²))² / δ² = 95.4 for ψ = 1/8 and δ = 0.1."""
    assert prompts_for_loss(0.1, 0.125) == 96


@pytest.mark.parametrize(("rate", "n", "n_cell"), [(0.9, 40, 40), (0.92, 200, 200), (0.5, 128, 64), (1.0, 30, 30)])
def test_the_detectable_drop_is_found_in_four_of_five_samples(rate: float, n: int, n_cell: int) -> None:
    effect = proportion_effectsize(rate, rate - detectable_drop(rate, n, n_cell))
    assert NormalIndPower().power(effect, n, 0.05, n_cell / n) == pytest.approx(POWER, abs=1e-4)


@pytest.mark.parametrize(("loss", "rate"), [(0.1, 0.9), (0.1, 0.1), (0.05, 0.5), (0.2, 1.0)])
def test_prompts_that_find_a_drop_are_statsmodels(loss: float, rate: float) -> None:
    found = NormalIndPower().solve_power(proportion_effectsize(rate, rate - loss), alpha=0.05, power=POWER)
    assert prompts_for_drop(loss, rate) == ceil(found)


def test_what_no_number_of_prompts_finds() -> None:
    assert prompts_for_drop(0.1, 0.05) == 0
    assert isnan(detectable_drop(0.05, 10, 10))
