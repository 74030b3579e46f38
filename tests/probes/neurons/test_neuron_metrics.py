"""The neuron probe's maths against plain numpy, SPEC's expected layers, and planted effects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.harness.study_layers import DIRECTION_PERCENT, layer_at, layers_at
from probes.neurons import metrics
from probes.stats import random_draws


@pytest.mark.parametrize(
    ("n_layers", "expected"), [(16, [3, 6, 8, 10, 13]), (28, [6, 10, 14, 18, 22]), (32, [6, 11, 16, 21, 26]), (1, [0])]
)
def test_study_layers(n_layers: int, expected: list[int]) -> None:
    assert layers_at(n_layers) == expected


def test_direction_layer_rounds_half_up() -> None:
    assert [layer_at(n, DIRECTION_PERCENT) for n in (10, 16, 28, 30, 32)] == [7, 10, 18, 20, 21]


@pytest.mark.parametrize(("width", "count"), [(2048, 102), (1536, 76), (3072, 153), (32, 1), (20, 1), (4, 1)])
def test_number_of_safety_units(width: int, count: int) -> None:
    assert metrics.n_safety(width) == count


def test_head_sizes_are_euclidean() -> None:
    """A unit of three components counts by its length, a unit of one by its absolute value."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 4, 3))
    error = metrics.activation_error(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(error, np.sqrt(((a - b) ** 2).sum(-1)).mean(0), rtol=1e-12)
    one = metrics.activation_error(torch.tensor(a[..., :1]), torch.tensor(b[..., :1]))
    np.testing.assert_allclose(one, np.abs(a - b)[..., 0].mean(0), rtol=1e-12)
    deviations = a - a.mean(0)
    spread = metrics.spread(torch.tensor(deviations.var(0)))
    np.testing.assert_allclose(spread, np.sqrt((np.linalg.norm(deviations, axis=-1) ** 2).mean(0)), rtol=1e-12)


def test_ratio_leaves_undefined_units_out() -> None:
    error = torch.tensor([3.0, torch.nan, 1.0, 2.0])
    ratio = metrics.error_ratio(error, torch.tensor([[True, True, False, False], [False, True, False, False]]))
    assert ratio[0].item() == pytest.approx(3 / 1.5)
    assert math.isnan(ratio[1].item())


def test_ratio_without_error_is_undefined() -> None:
    assert math.isnan(metrics.error_ratio(torch.zeros(4), torch.tensor([True, False, False, False])).item())


@given(st.integers(1, 70), st.integers(0, 2**31), st.data())
def test_matched_sets_keep_the_strata(n_units: int, seed: int, data: st.DataObject) -> None:
    """Every draw has the chosen set's number of units in every stratum of magnitude ranks."""
    count = data.draw(st.integers(1, n_units))
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(n_units, generator=generator)
    chosen = torch.zeros(n_units, dtype=torch.bool)
    chosen[torch.randperm(n_units, generator=generator)[:count]] = True
    sets = metrics.matched_sets(chosen, magnitude, 7, generator)
    by_rank = sets[:, magnitude.argsort(stable=True)].numpy()
    chosen_by_rank = chosen[magnitude.argsort(stable=True)].numpy()
    strata = np.array_split(np.arange(n_units), max(1, n_units // metrics.STRATUM))
    for stratum in strata:
        assert (by_rank[:, stratum].sum(1) == chosen_by_rank[stratum].sum()).all()


def test_matched_sets_are_uniform_within_a_stratum() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(30, dtype=torch.bool)
    chosen[[0, 1, 15]] = True
    sets = metrics.matched_sets(chosen, torch.arange(30.0), 20_000, generator)
    frequency = sets.double().mean(0).view(3, 10)
    assert frequency[0].sub(0.2).abs().max() < 0.015
    assert frequency[1].sub(0.1).abs().max() < 0.012
    assert frequency[2].max() == 0


def test_permutation_p_against_an_exact_permutation_test() -> None:
    """One unit of ten chosen: its exact null has ten equally likely sets, two at least as large."""
    error = torch.arange(1.0, 11.0)
    chosen = metrics.largest(torch.tensor([0.0] * 8 + [1.0, 0.0]), 1)
    sets = metrics.matched_sets(chosen, torch.rand(10), 20_000, torch.Generator().manual_seed(1))
    p = random_draws.draw_p(metrics.error_ratio(error, chosen).item(), metrics.error_ratio(error, sets))
    assert p == pytest.approx(0.2, abs=0.012)


def test_p_is_uniform_without_an_effect() -> None:
    """Under the null hypothesis p values are uniform: their quantiles are those of the uniform distribution."""
    generator = torch.Generator().manual_seed(2)
    chosen = metrics.largest(torch.rand(100, generator=generator), 10)
    magnitude = torch.rand(100, generator=generator)
    sets = metrics.matched_sets(chosen, magnitude, 400, generator)
    errors = [torch.rand(100, generator=generator) for _ in range(300)]
    ratio = metrics.error_ratio
    p = [random_draws.draw_p(ratio(error, chosen).item(), ratio(error, sets)) for error in errors]
    levels = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert np.abs(np.quantile(p, levels) - levels).max() < 0.09
