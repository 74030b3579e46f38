"""Against statistics of the whole sample, by the standard library in exact arithmetic or by numpy in float64."""

from __future__ import annotations

import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InputError
from interp.running_stats import RunningStats

numbers = st.floats(min_value=-1e6, max_value=1e6, allow_subnormal=False, width=32)
samples = st.lists(numbers, min_size=2, max_size=40)


def running(values: list[float], *cuts: int) -> RunningStats:
    stats = RunningStats()
    for chunk in np.split(np.array(values), sorted(cuts)):
        stats.add(torch.tensor(chunk)[:, None])
    return stats


@given(values=samples, data=st.data())
def test_equals_exact_arithmetic_however_the_sample_is_split(values: list[float], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=3))
    stats = running(values, *cuts)
    exact = [Fraction(value) for value in values]
    scale = max(abs(value) for value in values) or 1.0
    assert stats.count == len(values)
    assert stats.mean.item() == pytest.approx(float(statistics.mean(exact)), rel=1e-12, abs=1e-14 * scale)
    assert stats.variance().item() == pytest.approx(float(statistics.variance(exact)), rel=1e-9, abs=1e-20 * scale**2)


@given(first=samples, second=samples)
def test_merging_equals_adding(first: list[float], second: list[float]) -> None:
    merged = running(first)
    merged.merge(running(second))
    scale = max(abs(value) for value in first + second) or 1.0
    whole = np.array(first + second)
    assert merged.count == len(whole)
    assert merged.mean.item() == pytest.approx(whole.mean(), rel=1e-12, abs=1e-13 * scale)
    assert merged.variance(0).item() == pytest.approx(whole.var(), rel=1e-9, abs=1e-13 * scale**2)


def test_a_small_spread_around_a_large_mean_survives_in_float64() -> None:
    """The sum-of-squares formula, or float32, would return 0 or rubbish here."""
    offsets = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    stats = RunningStats()
    for offset in offsets:
        stats.add((1e9 + offset).reshape(1))
    assert stats.variance().item() == pytest.approx(5 / 3, rel=1e-9)


def test_half_precision_input_is_accumulated_in_float64() -> None:
    stats = RunningStats()
    for _ in range(100):
        stats.add(torch.full((1000, 2), 0.1, dtype=torch.float16))
    assert stats.mean.dtype == torch.float64
    assert stats.mean[0].item() == pytest.approx(float(np.float16(0.1)), rel=1e-13)


def test_shapes_and_memory_do_not_depend_on_how_much_was_seen() -> None:
    stats = RunningStats()
    for _ in range(50):
        stats.add(torch.randn(20, 4, 3))
    kept = [value for value in stats.state_dict().values() if isinstance(value, torch.Tensor)]
    assert [tuple(value.shape) for value in kept] == [(4, 3), (4, 3)]
    assert stats.mean.shape == stats.variance().shape == (4, 3)


def test_goes_on_from_a_state_dict(tmp_path) -> None:  # type: ignore[no-untyped-def]
    values = torch.randn(30, 5, dtype=torch.float64)
    stats = RunningStats()
    stats.add(values[:10])
    torch.save(stats.state_dict(), tmp_path / "stats.pt")
    resumed = RunningStats.from_state_dict(torch.load(tmp_path / "stats.pt", weights_only=True))
    resumed.add(values[10:])
    torch.testing.assert_close(resumed.mean, values.mean(0))
    torch.testing.assert_close(resumed.variance(), values.var(0))
    assert stats.count == 10


def test_a_mean_handed_out_is_not_changed_by_more_values() -> None:
    stats = RunningStats()
    stats.add(torch.ones(2, 3))
    before = stats.mean
    stats.add(torch.zeros(2, 3))
    assert torch.equal(before, torch.ones(3, dtype=torch.float64))


def test_undefined_is_nan_or_an_error() -> None:
    stats = RunningStats()
    stats.add(torch.zeros(0, 3))
    stats.merge(RunningStats())
    with pytest.raises(InputError, match="no mean"):
        _ = stats.mean
    stats.add(torch.ones(1, 3))
    assert stats.variance().isnan().all()
    assert torch.equal(stats.variance(0), torch.zeros(3, dtype=torch.float64))


def test_values_that_would_poison_a_mean_are_refused() -> None:
    stats = RunningStats()
    stats.add(torch.ones(1, 3))
    with pytest.raises(InputError, match="not finite"):
        stats.add(torch.tensor([[1.0, float("nan"), 0.0]]))
    with pytest.raises(InputError, match=r"shape \(2,\)"):
        stats.add(torch.ones(1, 2))
    assert stats.count == 1
