"""How far an intervention brings a number from where a model is to where another is."""

from __future__ import annotations

from math import nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from probes.stats.bootstrap import CONFIDENCE, resampled_means
from probes.stats.intervals import Interval

DRAWS = 2000
NO_SHIFT = (
    "no share: over these prompts the baseline's and the cell's mean margins do not differ beyond chance (the interval "
    "of their difference includes 0); more prompts narrow it"
)


class Recovery(NamedTuple):
    """The effect of one intervention, with bootstrap intervals over prompts.

    Attributes:
        margin: mean after the intervention.
        gain: mean difference it made.
        share: gain / (goal − start): 0 for none, 1 where the goal is reached, NaN where goal and start are not apart.
        reason: why the share is NaN, else "".
    """

    margin: Interval
    gain: Interval
    share: Interval
    reason: str


def recoveries(
    changed: Float[Tensor, "point prompt"],
    start: Float[Tensor, " prompt"],
    goal: Float[Tensor, " prompt"],
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Recovery]:
    """Compare interventions with where they start and what they aim at, on the same prompts, resampled together.

    Args:
        changed: per intervention and prompt.
        start: without intervention: the cell for restoring, the baseline for damaging.
        goal: the other model.
        draws: bootstrap resamples of prompts.
        seed: of the resamples.
    """
    outcomes = np.vstack([start.numpy(), goal.numpy(), changed.numpy()]).astype(float)
    means = outcomes.mean(1)
    samples = resampled_means(outcomes, draws, seed)
    distance = _interval(means[1] - means[0], samples[:, 1] - samples[:, 0])
    apart = bool(distance.low > 0 or distance.high < 0)
    found = []
    for point in range(2, len(outcomes)):
        gain, gains = means[point] - means[0], samples[:, point] - samples[:, 0]
        share = Interval(nan, nan, nan)
        if apart:
            share = _interval(gain / distance.estimate, gains / (samples[:, 1] - samples[:, 0]))
        margin = _interval(means[point], samples[:, point])
        found.append(Recovery(margin, _interval(gain, gains), share, "" if apart else NO_SHIFT))
    return found


def _interval(estimate: float, samples: Float[np.ndarray, " draw"]) -> Interval:
    """The estimate between the percentiles of its resamples; exact where every resample is equal."""
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(estimate), float(low), float(high))
