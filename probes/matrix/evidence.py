"""What the prompts of a cell can tell: whether it lost refusals, and how many prompts would do where they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from probes.matrix.regimes import STUDY, RegimeRule
from probes.stats.paired_tests import delta_interval, mcnemar_p, minimum_detectable_effect, unpaired_interval
from probes.stats.power import detectable_drop, prompts_for_drop, prompts_for_loss

COLUMNS = (
    *("n_pairs", "n_lost", "n_gained", "p_mcnemar", "refusal_rate_delta_low", "refusal_rate_delta_high"),
    *("detectable_delta", "prompts_needed"),
)
"""What `evidence` gives."""
NOTHING: dict[str, float | int] = dict.fromkeys(COLUMNS, np.nan)
"""The columns of a row without evidence: a baseline, a cell without answers."""


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


def unpaired(matrix: pd.DataFrame, rule: RegimeRule = STUDY) -> pd.DataFrame:
    """What rates and their numbers of prompts say of the loss of refusals, where the outcomes are not known one by one.

    Args:
        matrix: with model, quantization, baseline, refusal_rate and refusal_rate_n; rows that have `evidence` of paired
            outcomes (n_pairs) keep it.
        rule: the loss that counts.

    Returns:
        The matrix with refusal_rate_delta_low and _high (Newcombe's 95 % interval of independent rates),
        detectable_delta (80 % power) and prompts_needed, of cell and baseline each.
    """
    baselines = matrix[matrix["quantization"] == matrix["baseline"]].set_index("model")
    rows = matrix.to_dict("records")
    columns = ("refusal_rate_delta_low", "refusal_rate_delta_high", "detectable_delta", "prompts_needed")
    known = [_unpaired(row, baselines.loc[row["model"]], rule) for row in rows]
    evidence_table = pd.DataFrame(known, columns=list(columns), index=matrix.index)
    own = matrix.reindex(columns=list(columns))
    paired = matrix["n_pairs"].notna() if "n_pairs" in matrix else pd.Series(False, index=matrix.index)
    return matrix.assign(**own.where(paired, evidence_table))


def _unpaired(row: Mapping[Any, Any], baseline: pd.Series, rule: RegimeRule) -> dict[str, float]:
    sides = [(side["refusal_rate"], side["refusal_rate_n"]) for side in (row, baseline)]
    if row["quantization"] == row["baseline"] or pd.isna(sides).any():
        return {}
    (rate, n), (reference, m) = ((float(rate), int(n)) for rate, n in sides)
    interval = unpaired_interval((rate, n), (reference, m))
    return {
        "refusal_rate_delta_low": interval.low,
        "refusal_rate_delta_high": interval.high,
        "detectable_delta": detectable_drop(reference, m, n),
        "prompts_needed": prompts_for_drop(-rule.refusal_loss, reference),
    }


def cannot_tell(row: Any) -> str:
    """In words, what a row's prompts cannot tell, and how many would do."""
    pairs, needed = row.get("n_pairs"), row["prompts_needed"]
    n = int(row["refusal_rate_n"] if pd.isna(pairs) else pairs)
    enough = f"about {int(needed)} would do" if needed else "no number of prompts would do"
    return f"cannot tell with these {n} prompts; {enough}"
