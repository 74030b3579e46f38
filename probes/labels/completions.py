"""Answers as a study keeps them: a row per cell and prompt of its two prompt sets, with what each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from interp.errors import InputError
from probes.labels.refused import SIDES, decide, with_outcomes


def completions_of(outcomes: pd.DataFrame, prompts: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """The answers to harmful and harmless requests, in the order of the requests.

    Args:
        outcomes: one row per (cell, task, prompt), as `probes.refusal` gives them; other tasks are left out.
        prompts: "harmful" and "harmless", of which some may not have been asked; default those that were, in the order
            of the table.

    Returns:
        cell, prompts ("harmful" or "harmless"), prompt, text, n_tokens, finished (else it was cut), and the columns of
        `probes.labels.refused.with_outcomes`; n_tokens is missing and finished false where the table does not say.

    Raises:
        InputError: no request of the two sets was asked.
    """
    parts = [
        _of_cell(str(cell), side, answers, list(prompts[side] if prompts else of_task["prompt"].drop_duplicates()))
        for task, side in SIDES.items()
        for of_task in [outcomes[outcomes["task"] == task]]
        for cell, answers in of_task.groupby("cell", sort=False)
    ]
    if not parts:
        raise InputError("There are no answers to count refusals in", f"some of the tasks {' and '.join(SIDES)}")
    return with_outcomes(pd.concat(parts, ignore_index=True), decide(outcomes))


def _of_cell(cell: str, side: str, answers: pd.DataFrame, prompts: Sequence[str]) -> pd.DataFrame:
    answered = answers.drop_duplicates("prompt").set_index("prompt").reindex(list(prompts))
    columns = {
        "text": answered["response"].fillna("").astype(str).str.strip().to_list(),
        "n_tokens": answered["n_tokens"].to_list() if "n_tokens" in answered else float("nan"),
        "finished": (answered["stop_reason"] == "stop").to_list() if "stop_reason" in answered else False,
    }
    return pd.DataFrame({"cell": cell, "prompts": side, "prompt": list(prompts), **columns})
