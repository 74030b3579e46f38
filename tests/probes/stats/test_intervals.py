"""Intervals against scipy's and statsmodels' own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from probes.stats.intervals import mean_interval, rate_interval, wilson


def test_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40), rng.normal(0.3, 2.0, size=40)
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    interval = mean_interval(torch.tensor(b - a))
    assert interval[:3] == pytest.approx((float((b - a).mean()), expected.low, expected.high), rel=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (61, 220)])
def test_wilson(successes: int, n: int) -> None:
    outcomes = torch.arange(n) < successes
    low, high = proportion_confint(successes, n, method="wilson")
    assert rate_interval(outcomes)[:3] == pytest.approx((successes / n, low, high), abs=1e-9)


@given(st.integers(1, 600), st.data())
def test_wilson_is_scipys_to_the_last_bit(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n)[:4] == (successes / n, expected.low, expected.high, n)


def test_wilson_of_a_rounded_rate_is_statsmodels() -> None:
    """A published rate times its n is no whole number."""
    low, high = proportion_confint(0.9318 * 220, 220, method="wilson")
    assert wilson(0.9318 * 220, 220)[1:3] == pytest.approx((low, high), abs=1e-14)


def test_undefined() -> None:
    assert all(map(math.isnan, mean_interval(torch.tensor([1.0, torch.nan]))[:3]))
    assert all(map(math.isnan, rate_interval(torch.zeros(0, dtype=torch.bool))[:3]))
    estimate, low, high, *_ = mean_interval(torch.tensor([2.0]))
    assert estimate == 2.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert mean_interval(torch.tensor([2.0, 2.0]))[:3] == (2.0, 2.0, 2.0)
