"""What so many prompts can show: the smallest loss that they would have found, and how many prompts would do."""

from __future__ import annotations

from math import asin, ceil, log, nan, sin, sqrt

from scipy import special

from probes.stats.intervals import ALPHA
from probes.stats.paired_tests import minimum_detectable_effect

POWER = 0.8
"""Share of studies of this size that would find a loss of the detectable size."""
MOST = 2**20
"""Prompts beyond which nobody asks."""


def detectable_flip_rate(n_at_risk: int, power: float = POWER) -> float:
    """The smallest true flip rate that shows as one flip or more: 1 − (1 − power)^(1/n).

    Args:
        n_at_risk: prompts that can flip, at least one.
        power: share of the samples in which it shows.
    """
    return 1 - (1 - power) ** (1 / n_at_risk)


def prompts_at_risk(flip_rate: float, power: float = POWER) -> int:
    """The fewest prompts at risk in which a true flip rate shows as one flip or more; 0 where no number would do.

    Args:
        flip_rate: a share; no number of prompts shows that nothing at all flips.
        power: share of the samples in which it shows.
    """
    if flip_rate <= 0:
        return 0
    return 1 if flip_rate >= power else ceil(round(log(1 - power) / log(1 - flip_rate), 9))


def prompts_for_loss(loss: float, discordant_share: float, power: float = POWER) -> int:
    """The fewest prompts with which McNemar's test finds a difference of rates; 0 where 2²⁰ would not do.

    Args:
        loss: the true difference of the two rates, a share above 0.
        discordant_share: of the prompts, those on which the two differ.
        power: share of the samples in which it is found.
    """

    def enough(n: int) -> bool:
        return minimum_detectable_effect(n, discordant_share, power) <= loss

    if not enough(MOST):
        return 0
    few, many = 0, MOST
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if middle and enough(middle) else (middle, many)
    return many


def detectable_drop(rate: float, n: int, n_cell: int, power: float = POWER) -> float:
    """The smallest fall of a rate that a two-sided test of two independent rates finds (α = 5 %).

    Source: Cohen (1988), Statistical Power Analysis, chapter 6: h = 2·asin √p − 2·asin √q, normally distributed with
    variance 1/n + 1/m.

    Args:
        rate: the true rate that it falls from.
        n: prompts of that rate.
        n_cell: prompts of the rate that it falls to.
        power: share of the samples in which it is found.

    Returns:
        A share; NaN where not even a fall to 0 is found.
    """
    angle = asin(sqrt(rate)) - _quantiles(power) * sqrt(1 / n + 1 / n_cell) / 2
    return rate - sin(angle) ** 2 if angle >= 0 else nan


def prompts_for_drop(loss: float, rate: float, power: float = POWER) -> int:
    """The fewest prompts of each of two independent rates with which such a fall is found; 0 where none would do.

    Args:
        loss: the true fall, a share above 0.
        rate: that it falls from; 0 where it cannot fall so far.
        power: share of the samples in which it is found.
    """
    if rate < loss:
        return 0
    effect = 2 * (asin(sqrt(rate)) - asin(sqrt(rate - loss)))
    return ceil(round(2 * (_quantiles(power) / effect) ** 2, 9))


def _quantiles(power: float) -> float:
    return float(special.ndtri(1 - ALPHA / 2) + special.ndtri(power))
