"""Is there anything to lose? A baseline that refuses next to nothing is said before everything else."""

from __future__ import annotations

import pandas as pd

from probes.labels.refused import HARMFUL_TASKS
from probes.stats.intervals import wilson

ALMOST_NOTHING = 0.2
"""A baseline that refuses a smaller share of the harmful prompts has next to nothing to lose."""


def little_to_lose(n_refusals: float | int, n_total: float | int, name: str = "The baseline") -> str:
    """A sentence where a baseline refuses so little that no cell can lose much, else ""."""
    if pd.isna(n_total) or pd.isna(n_refusals) or not n_total or n_refusals / n_total >= ALMOST_NOTHING:
        return ""
    rate = wilson(int(n_refusals), int(n_total))
    return (
        f"{name} refuses only {int(n_refusals)} of {int(n_total)} harmful prompts itself ({100 * rate.value:.0f} % "
        f"[{100 * rate.low:.0f}, {100 * rate.high:.0f}]): there is next to nothing to lose"
    )


def little_to_lose_by_task(counts: pd.DataFrame) -> list[str]:
    """`little_to_lose` of a baseline in every task whose prompts should be refused.

    Args:
        counts: of the baseline, with task, n_refusals and n_total; the first row of a task counts.
    """
    harmful = counts[counts["task"].isin(list(HARMFUL_TASKS))].drop_duplicates("task")
    called = ["The baseline"] if len(harmful) == 1 else [f"In the task {task} the baseline" for task in harmful["task"]]
    notes = map(little_to_lose, harmful["n_refusals"], harmful["n_total"], called)
    return [note for note in notes if note]
