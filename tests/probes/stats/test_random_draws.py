"""The p of random draws, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from probes.stats.random_draws import draw_p


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-7, 1e6])
def test_a_draw_that_repeats_the_observed_set_counts_against_it(scale: float) -> None:
    """Three of five are at least as large: one equal but for rounding, one larger, one undefined."""
    observed = 0.1 + 0.2
    larger, smaller = observed + abs(observed) / 10, observed - abs(observed) / 10
    draws = [0.3, larger, smaller, smaller] if scale > 0 else [0.3, smaller, larger, larger]
    assert draw_p(scale * observed, scale * np.array([*draws, np.nan])) == pytest.approx(4 / 6)


def test_undefined_and_without_draws() -> None:
    assert math.isnan(draw_p(math.nan, np.ones(3)))
    assert math.isnan(draw_p(1.0, np.ones(0)))
    assert draw_p(2.0, torch.tensor([1.0, math.inf, -math.inf])) == pytest.approx(2 / 4)
