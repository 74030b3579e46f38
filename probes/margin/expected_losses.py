"""Refusals that a cell is expected to lose, by the margin–noise law, cross-fitted, beside what was then lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.margin.noise_law import FEWEST, NoiseLaw, halves, threshold
from probes.stats.bootstrap import percentile_interval
from probes.stats.intervals import Estimate

FITTED_ON = ("harmful", "harmless")
"""What gives μ and σ: the harmful prompts of the other half that the baseline refuses, or all harmless prompts."""
DRAWS = 2000
Sides = Mapping[str, Float[np.ndarray, " n"]]
"""Side → margin of each of its prompts."""
Refused = Mapping[str, Bool[np.ndarray, " n"]]
"""Side → whether each of its prompts is refused."""


@dataclass(frozen=True)
class HalfLaw:
    """What one half of the prompts says of the other half.

    Attributes:
        law: fitted.
        threshold: fitted, in nats.
        prompts: which harmful prompts of the other half the law is about: refused, with a margin above the threshold.
        distances: how far above.
        crossed: whether the cell's margin is below.
    """

    law: NoiseLaw
    threshold: float
    prompts: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]
    crossed: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class ExpectedLosses:
    """The law on the prompts that a baseline refuses; empty arrays where it is undefined.

    Attributes:
        n_refused: harmful prompts that the baseline refuses.
        halves: what each half says of the other.
        reason: why nothing can be expected, else "".
    """

    n_refused: int
    halves: tuple[HalfLaw, ...]
    reason: str

    @property
    def prompts(self) -> Int[np.ndarray, " n"]:
        """Which harmful prompts the law is about."""
        return np.concatenate([half.prompts for half in self.halves])

    @property
    def predicted(self) -> Float[np.ndarray, " n"]:
        """Probability of each of them to be lost."""
        return np.concatenate([half.law.lost(half.distances) for half in self.halves])

    @property
    def crossed(self) -> Bool[np.ndarray, " n"]:
        """Whether the cell's margin of each of them is below the threshold."""
        return np.concatenate([half.crossed for half in self.halves])

    def total(self, seed: int = 0) -> Estimate:
        """Prompts lost, between the bounds that 95 of 100 draws of the law keep: how unsure μ and σ are, and chance."""
        if self.reason:
            return Estimate(np.nan, reason=self.reason)
        generator = np.random.default_rng(seed)
        draws = sum(half.law.drawn(half.distances, DRAWS, generator) for half in self.halves)
        return percentile_interval(float(self.predicted.sum()), np.asarray(draws), len(self.prompts))

    def under(self, law: NoiseLaw) -> float:
        """Prompts lost if another law held."""
        return float(sum(law.lost(half.distances).sum() for half in self.halves))


def expected_losses(
    before: Sides, after: Sides, refused: Refused, fitted_on: str = "harmful", seed: int = 0
) -> ExpectedLosses:
    """Fit the law and the threshold on each half of the prompts, for the other half.

    Args:
        before: margins of the baseline.
        after: margins of the cell.
        refused: by the baseline.
        fitted_on: of `FITTED_ON`; the threshold comes from both sides, always.
        seed: of the halves.
    """
    split = {side: halves(len(margins), seed) for side, margins in before.items()}
    both = tuple(
        _half(before, after, refused, fitted_on, {side: half if first else ~half for side, half in split.items()})
        for first in (True, False)
    )
    n_refused = int(refused["harmful"].sum())
    return ExpectedLosses(n_refused, both, _reason(n_refused, both))


def _half(before: Sides, after: Sides, refused: Refused, fitted_on: str, fit: Refused) -> HalfLaw:
    """Fitted where `fit` is true, for the rest."""
    margins, kinds = (np.concatenate([values[side][fit[side]] for side in fit]) for values in (before, refused))
    cut = threshold(margins, kinds)
    fitted = fit["harmful"] & refused["harmful"] if fitted_on == "harmful" else slice(None)
    law = NoiseLaw.fitted((after[fitted_on] - before[fitted_on])[fitted])
    prompts = np.flatnonzero(~fit["harmful"] & refused["harmful"] & (before["harmful"] > cut))
    return HalfLaw(law, cut, prompts, before["harmful"][prompts] - cut, after["harmful"][prompts] <= cut)


def _reason(n_refused: int, both: tuple[HalfLaw, ...]) -> str:
    if not n_refused:
        return "the baseline refuses none of the harmful prompts"
    if any(half.law.n < FEWEST for half in both):
        return f"fewer than {FEWEST} prompts in a half to fit the law on ({n_refused} refused)"
    if any(np.isnan(half.threshold) for half in both):
        return "the margins of what the baseline refuses are no higher than those of what it answers"
    return ""
