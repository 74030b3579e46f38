"""The margin–noise law: quantization is a shift of the refusal margin and noise on top, and what crosses is lost.

A cell moves every prompt's margin by the same shift μ and by noise of spread σ, so that a prompt whose margin lies d
above the threshold of refusing is lost with probability Φ(−(d + μ)/σ). Two numbers of a cell and the distances of its
baseline then say how many refusals go, whatever the model's margins look like.

A margin is about how an answer begins, and 0 need not be where refusals end: the threshold is read from the baseline,
from the margins of what it refuses and what it answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

FEWEST = 2
"""Prompts that a spread comes from."""
BINS = 10
"""The bins of a reliability curve, of equal width."""


@dataclass(frozen=True)
class NoiseLaw:
    """How a cell moves margins.

    Attributes:
        shift: μ, the mean, in nats.
        spread: σ, the standard deviation about it.
        n: prompts that both come from.
    """

    shift: float
    spread: float
    n: int

    @classmethod
    def fitted(cls, shifts: Float[np.ndarray, " n"]) -> NoiseLaw:
        """Mean and unbiased standard deviation of cell − baseline, NaN below two prompts."""
        if len(shifts) < FEWEST:
            return cls(nan, nan, len(shifts))
        return cls(float(shifts.mean()), float(shifts.std(ddof=1)), len(shifts))

    def lost(self, distances: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Φ(−(d + μ)/σ) of prompts that lie so far above the threshold; without spread, whether they cross."""
        return _crossing(distances + self.shift, np.asarray(self.spread))

    def drawn(
        self, distances: Float[np.ndarray, " n"], draws: int, generator: np.random.Generator
    ) -> Float[np.ndarray, " draws"]:
        """How many of the prompts are lost, drawn as often: μ and σ as unsure as n prompts leave them, then prompts."""
        degrees = self.n - 1
        spreads = self.spread * np.sqrt(degrees / generator.chisquare(degrees, (draws, 1)))
        shifts = self.shift + spreads / np.sqrt(self.n) * generator.standard_normal((draws, 1))
        probabilities = _crossing(distances + shifts, spreads)
        return (generator.random(probabilities.shape) < probabilities).sum(1).astype(float)


def _crossing(after: Float[np.ndarray, "*n"], spread: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*n"]:
    certain = np.where(after <= 0, np.inf, -np.inf)
    return stats.norm.cdf(np.divide(-after, spread, out=certain, where=spread > 0))


def threshold(margins: Float[np.ndarray, " n"], refused: Bool[np.ndarray, " n"]) -> float:
    """The margin above which a baseline refuses.

    Where the two kinds lie apart it is 0 if 0 is between them, else the middle of the gap. Where they overlap it is the
    margin at which a probit regression of refusing on the margin gives one half. 0 where one kind is missing.

    Args:
        margins: of prompts of both kinds, in nats.
        refused: which of them the baseline refuses.

    Returns:
        In nats; NaN where refused prompts have no higher margins than answered ones.
    """
    if refused.all() or not refused.any():
        return 0.0
    low, high = float(margins[refused].min()), float(margins[~refused].max())
    if low > high:
        return 0.0 if low > 0 >= high else (low + high) / 2
    return _probit_threshold(margins, refused)


def _probit_threshold(margins: Float[np.ndarray, " n"], refused: Bool[np.ndarray, " n"]) -> float:
    centre, scale = margins.mean(), margins.std()
    if scale == 0:
        return nan
    standardized, sign = (margins - centre) / scale, np.where(refused, 1.0, -1.0)

    def cost(line: np.ndarray) -> float:
        return -float(stats.norm.logcdf(sign * (line[0] + line[1] * standardized)).sum())

    intercept, slope = optimize.minimize(cost, np.zeros(2)).x
    return float(centre - scale * intercept / slope) if slope > 0 else nan


def halves(n: int, seed: int = 0) -> Bool[np.ndarray, " n"]:
    """One random half of n prompts."""
    return np.random.default_rng(seed).permutation(n) < n // 2


@dataclass(frozen=True)
class ReliabilityBin:
    """Prompts whose predicted probability lies in one tenth.

    Attributes:
        low, high: its edges.
        n: prompts in it.
        predicted: their mean probability.
        observed: share of them that were lost.
    """

    low: float
    high: float
    n: int
    predicted: float
    observed: float


def reliability(predicted: Float[np.ndarray, " n"], lost: Bool[np.ndarray, " n"]) -> list[ReliabilityBin]:
    """The reliability curve: in each tenth of the predicted probability, the share that was lost; empty ones left out.

    Args:
        predicted: probability of each prompt to be lost.
        lost: whether it was.
    """
    places = np.minimum((predicted * BINS).astype(int), BINS - 1)
    return [
        ReliabilityBin(
            place / BINS,
            (place + 1) / BINS,
            int((places == place).sum()),
            float(predicted[places == place].mean()),
            float(lost[places == place].mean()),
        )
        for place in np.unique(places).tolist()
    ]


def calibration_error(curve: list[ReliabilityBin]) -> float:
    """Expected calibration error (ECE): mean over prompts of |observed − predicted| of their bin; NaN without bins."""
    n = sum(part.n for part in curve)
    return sum(part.n * abs(part.observed - part.predicted) for part in curve) / n if n else nan
