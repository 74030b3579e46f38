"""What so many prompts can show: the smallest loss that they would have found, and how many prompts would do."""

from __future__ import annotations

from math import ceil, log

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
