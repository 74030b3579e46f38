"""Recovered shares against their definition and a bootstrap written out."""

from __future__ import annotations

import numpy as np
import torch

from probes.causal.recovery import recoveries


def test_shares_between_start_and_goal() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(60, generator=generator)
    goal = start + 1 + 0.3 * torch.randn(60, generator=generator)
    half = start + (goal - start) / 2
    found = recoveries(torch.stack([start, goal, half, goal + (goal - start)]), start, goal)
    for effect, expected in zip(found, (0.0, 1.0, 0.5, 2.0), strict=True):
        np.testing.assert_allclose(effect.share[:3], expected, atol=1e-6)  # the same on all resamples
        np.testing.assert_allclose(effect.margin.value - start.mean(), effect.gain.value, atol=1e-6)
        assert effect.reason == ""
    assert found[2].gain.low < found[2].gain.value < found[2].gain.high


def test_bounds_are_percentiles_over_prompts() -> None:
    generator = torch.Generator().manual_seed(1)
    start, noise = torch.randn(40, generator=generator), torch.randn(40, generator=generator)
    goal, changed = start + 2, start + 1 + noise
    (effect,) = recoveries(changed[None], start, goal, draws=4000)
    random = np.random.default_rng(9)
    picks = random.integers(40, size=(4000, 40))
    expected = np.quantile((1 + noise.numpy())[picks].mean(1), [0.025, 0.975])
    np.testing.assert_allclose([effect.gain.low, effect.gain.high], expected, atol=0.03)
    np.testing.assert_allclose([effect.share.low, effect.share.high], expected / 2, atol=0.02)


def test_no_share_where_the_models_are_not_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(20, generator=generator)
    goal = start + torch.randn(20, generator=generator)
    goal += start.mean() - goal.mean() + 0.01
    (effect,) = recoveries(start[None] + 1, start, goal)
    assert np.isnan(effect.share[:3]).all()
    assert "interval of their difference includes 0" in effect.reason
    np.testing.assert_allclose(effect.gain[:3], 1.0, atol=1e-6)
