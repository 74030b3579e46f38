"""Paired outcomes: intervals of differences, exact McNemar tests with Holm's correction, detectable effects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from interp.errors import InputError
from probes.stats.intervals import ALPHA, Estimate, wilson

FEWEST_FLIPS = 6
"""All in one direction; with fewer, McNemar's exact test never has p < 0.05: 2 · 0.5⁵ = 0.06."""


def paired_tests(baseline: Bool[np.ndarray, " prompts"], cells: Mapping[str, Bool[np.ndarray, " any"]]) -> pd.DataFrame:
    """Each cell against the baseline on the same prompts.

    Returns:
        A row a cell: `n`, `delta` (cell − baseline), `flips_gained` (false → true), `flips_lost` (true → false), `p`
        (exact McNemar, two-sided), `p_holm` (corrected over the cells), `detectable` (smallest true delta found with
        80 % power at the observed share of flips, in a rate).

    Raises:
        InputError: no prompts, or different numbers of them.
    """
    rows = [{"cell": name, **_paired(name, baseline, outcomes)} for name, outcomes in cells.items()]
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"])) if rows else table


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar's test from the two kinds of discordant pairs; 1 where there are none."""
    return float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue)


def holm(p_values: pd.Series) -> Float[np.ndarray, " tests"]:
    """Holm-corrected p values, each at most 1.

    `statsmodels.multipletests` computes the same but collects garbage at each call, which takes half a second once
    models are open. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.
    """
    order = np.argsort(p_values.to_numpy(), kind="stable")
    stepped = p_values.to_numpy()[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected


def delta_interval(baseline: Bool[np.ndarray, " prompts"], cell: Bool[np.ndarray, " any"]) -> Estimate:
    """Cell − baseline, a difference of rates on the same prompts, with Newcombe's 95 % interval.

    Unlike the bootstrap's it has a width where no prompt flipped. Source: Newcombe (1998), Statistics in Medicine 17,
    2635–2650, method 10: Wilson's intervals of both rates, joined at the correlation φ of the outcomes.

    Raises:
        InputError: no prompts, or different numbers of them.
    """
    if len(baseline) == 0 or baseline.shape != cell.shape:
        raise InputError(f"{len(baseline)} and {len(cell)} outcomes", "outcomes of both on the same prompts")
    n = len(baseline)
    p, q = wilson(int(cell.sum()), n), wilson(int(baseline.sum()), n)
    phi = _correlation(baseline, cell)
    delta = p.value - q.value
    below = _joined(p.value - p.low, q.high - q.value, phi)
    above = _joined(p.high - p.value, q.value - q.low, phi)
    return Estimate(delta, delta - below, delta + above, n)


def _joined(half: float, other: float, phi: float) -> float:
    """Half the width of a difference, from the halves of what is subtracted, at their correlation."""
    return float(np.sqrt(half**2 - 2 * phi * half * other + other**2))


def unpaired_interval(cell: tuple[float, int], baseline: tuple[float, int]) -> Estimate:
    """Cell − baseline, two independent rates, with Newcombe's 95 % interval: wider than a paired one.

    Source: Newcombe (1998), Statistics in Medicine 17, 873–890, method 10: Wilson's intervals of both rates, joined.

    Args:
        cell: its rate and n. The rate may be rounded, so that rate × n is no whole number.
        baseline: the same of the baseline.

    Raises:
        InputError: a rate outside [0, 1], or n < 1.
    """
    (rate, n), (reference, m) = cell, baseline
    if min(n, m) < 1 or not (0 <= rate <= 1 and 0 <= reference <= 1):
        raise InputError(f"Rates {rate} of {n} and {reference} of {m}", "rates in [0, 1], and n ≥ 1")
    low, high = confint_proportions_2indep(rate * n, n, reference * m, m, alpha=ALPHA, method="newcomb")
    return Estimate(rate - reference, float(low), float(high), n + m)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's φ with Newcombe's continuity correction; 0 where one of them is constant."""
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    excess: float = both * neither - int((first & ~second).sum()) * int((second & ~first).sum())
    if excess > 0:
        excess = max(excess - len(first) / 2, 0)
    spread = np.sqrt(float(first.sum()) * float((~first).sum()) * float(second.sum()) * float((~second).sum()))
    return float(excess / spread) if spread else 0.0


def minimum_detectable_effect(n: int, discordant_share: float, power: float = 0.8) -> float:
    """Smallest paired difference of rates that McNemar's test finds with this power (normal approximation, α = 5 %).

    Source: Connor (1987), n = (z_{α/2}·√ψ + z_β·√(ψ − δ²))² / δ², solved for δ; ψ is the share of discordant pairs.
    Where so few pairs are discordant (perhaps none) that no δ ≤ ψ solves it: the smallest change in one direction only,
    δ = ψ, with which the exact test's least number of flips is reached with this power. NaN where n is smaller than
    that number, so that no outcome is significant.
    """
    if n < 1 or not 0 <= discordant_share <= 1:
        raise InputError(f"n = {n}, discordant share {discordant_share}", "n ≥ 1 and a share in [0, 1]")
    if n < FEWEST_FLIPS:
        return np.nan
    significance, strength = stats.norm.ppf(1 - ALPHA / 2), stats.norm.ppf(power)
    # With a = z_{α/2}√ψ: δ√n − a = z_β√(ψ − δ²), a quadratic in δ.
    a, c = significance * np.sqrt(discordant_share), strength**2
    root = np.sqrt(n * a**2 - (n + c) * (a**2 - c * discordant_share))
    effect = float((np.sqrt(n) * a + root) / (n + c))
    if 0 < effect <= discordant_share:
        return effect
    # P(at least k of n) is the distribution function of Beta(k, n − k + 1).
    return float(stats.beta.ppf(power, FEWEST_FLIPS, n - FEWEST_FLIPS + 1))


def _paired(name: str, baseline: np.ndarray, cell: np.ndarray) -> dict[str, float | int]:
    if len(baseline) == 0 or baseline.shape != cell.shape:
        raise InputError(
            f"The baseline has {len(baseline)} outcomes, {name} {len(cell)}", "outcomes of both on the same prompts"
        )
    gained, lost = int((cell & ~baseline).sum()), int((baseline & ~cell).sum())
    n = len(baseline)
    return {
        "n": n,
        "delta": (gained - lost) / n,
        "flips_gained": gained,
        "flips_lost": lost,
        "p": mcnemar_p(lost, gained),
        "detectable": minimum_detectable_effect(n, (gained + lost) / n),
    }
