"""How far an intervention brings a number from where a model is to where another is."""

from __future__ import annotations

from math import nan
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from probes.stats.bootstrap import percentile_interval, resampled_means
from probes.stats.intervals import Estimate

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

    margin: Estimate
    gain: Estimate
    share: Estimate
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
    n = outcomes.shape[1]
    distance = percentile_interval(means[1] - means[0], samples[:, 1] - samples[:, 0], n)
    apart = bool(distance.low > 0 or distance.high < 0)
    effects = []
    for point in range(2, len(outcomes)):
        gain, gains = means[point] - means[0], samples[:, point] - samples[:, 0]
        share = Estimate(nan)
        if apart:
            share = percentile_interval(gain / distance.value, gains / (samples[:, 1] - samples[:, 0]), n)
        margin = percentile_interval(means[point], samples[:, point], n)
        effects.append(Recovery(margin, percentile_interval(gain, gains, n), share, "" if apart else NO_SHIFT))
    return effects
