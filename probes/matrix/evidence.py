"""What the prompts of a cell can tell: whether it lost refusals, and how many prompts would do where they cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from probes.matrix.regimes import STUDY, RegimeRule
from probes.stats.intervals import wilson
from probes.stats.paired_tests import delta_interval, mcnemar_p, minimum_detectable_effect
from probes.stats.power import prompts_for_loss

ALMOST_NOTHING = 0.2
"""Of the harmful prompts: a baseline that refuses a smaller share has next to nothing to lose."""
COLUMNS = (
    *("n_pairs", "n_lost", "n_gained", "p_mcnemar", "refusal_rate_delta_low", "refusal_rate_delta_high"),
    *("detectable_delta", "prompts_needed"),
)
"""What `evidence` gives."""
NOTHING: dict[str, float | int] = dict.fromkeys(COLUMNS, np.nan)
"""Of a row without evidence: a baseline, a cell without answers."""


def evidence(
    baseline: Bool[np.ndarray, " prompts"], cell: Bool[np.ndarray, " prompts"], rule: RegimeRule = STUDY
) -> dict[str, float | int]:
    """What outcomes of the same prompts say of the loss of refusals.

    Args:
        baseline: whether it refused each prompt.
        cell: the same.
        rule: the loss that counts.

    Returns:
        n_pairs, n_lost, n_gained; p_mcnemar (exact, two-sided, of this cell alone); refusal_rate_delta_low and _high
        (Newcombe's 95 % interval); detectable_delta, the smallest true change found in 4 of 5 tries at this share of
        flips, NaN where no outcome of so few prompts would be significant; prompts_needed, with which that change is
        the rule's loss.
    """
    if not len(baseline):
        return dict(NOTHING)
    lost, gained = int((baseline & ~cell).sum()), int((cell & ~baseline).sum())
    interval, share = delta_interval(baseline, cell), (lost + gained) / len(baseline)
    return {
        "n_pairs": len(baseline),
        "n_lost": lost,
        "n_gained": gained,
        "p_mcnemar": mcnemar_p(lost, gained),
        "refusal_rate_delta_low": interval.low,
        "refusal_rate_delta_high": interval.high,
        "detectable_delta": minimum_detectable_effect(len(baseline), share),
        "prompts_needed": prompts_for_loss(-rule.refusal_loss, share),
    }


def little_to_lose(n_refusals: float | int, n_total: float | int, name: str = "The baseline") -> str:
    """A sentence where a baseline refuses so little that no cell can lose much, else ""."""
    if pd.isna(n_total) or pd.isna(n_refusals) or not n_total or n_refusals / n_total >= ALMOST_NOTHING:
        return ""
    rate = wilson(int(n_refusals), int(n_total))
    return (
        f"{name} refuses only {int(n_refusals)} of {int(n_total)} harmful prompts itself ({100 * rate.value:.0f} % "
        f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]): there is next to nothing to lose"
    )


def cannot_tell(row: Any) -> str:
    """In words, what a row's prompts cannot tell, and how many would do."""
    n, needed = int(row["n_pairs"]), row["prompts_needed"]
    enough = f"about {int(needed)} would do" if needed else "no number of prompts would do"
    return f"cannot tell with these {n} prompts; {enough}"
