"""Mean and variance of a stream, in float64 and constant memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from interp.errors import InputError, NotFinite


class RunningStats:
    """Count, mean and variance per element of the vectors seen so far (pairwise update of Chan, Golub & LeVeque 1979).

    Example:
        >>> stats = RunningStats()
        >>> model.stream(prompts, [name], lambda acts, _: stats.add(acts[name]))
        >>> stats.mean, stats.variance()
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, values: Num[Tensor, n * shape]) -> None:
        """Take in n vectors. Vectors after the first call must have the same shape.

        Raises:
            InputError: another shape than before, or a value that is not finite.
        """
        if len(values) == 0:
            return
        values = values.to(torch.float64)
        if not torch.isfinite(values).all():
            raise NotFinite("A value that is not finite cannot enter a statistic", do="Measure in float32 or bfloat16")
        mean = values.mean(0)
        self._combine(len(values), mean, ((values - mean) ** 2).sum(0))

    def merge(self, other: RunningStats) -> None:
        """Take in everything that another object has seen."""
        if other._mean is not None and other._squares is not None:
            self._combine(other.count, other._mean, other._squares)

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """Mean, float64. Raises InputError while nothing was added."""
        return self._seen()[0].clone()

    def variance(self, correction: int = 1) -> Float[Tensor, "*shape"]:
        """Variance with the divisor count − correction, float64; NaN where that is not positive.

        Raises:
            InputError: nothing was added.
        """
        squares = self._seen()[1]
        divisor = self.count - correction
        return squares / divisor if divisor > 0 else torch.full_like(squares, float("nan"))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later: count, mean, and sum of squared deviations."""
        return {"count": self.count, "mean": self._mean, "squares": self._squares}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RunningStats:
        """The inverse of `state_dict`."""
        stats = cls()
        stats.count, stats._mean, stats._squares = state["count"], state["mean"], state["squares"]
        return stats

    def _seen(self) -> tuple[Tensor, Tensor]:
        if self._mean is None or self._squares is None:
            raise InputError("No value was added, so there is no mean", "at least one prompt")
        return self._mean, self._squares

    def _combine(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = count, mean.clone(), squares.clone()
            return
        if mean.shape != self._mean.shape:
            raise InputError(
                f"Vectors of shape {tuple(mean.shape)} were added", f"shape {tuple(self._mean.shape)}, as before"
            )
        total = self.count + count
        delta = mean - self._mean
        self._squares = self._squares + squares + delta**2 * (self.count * count / total)
        self._mean = self._mean + delta * (count / total)
        self.count = total
