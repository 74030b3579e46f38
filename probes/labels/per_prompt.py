"""One outcome per prompt: several answers to one prompt are one observation of it, however often it was asked.

Answers of one cell to one prompt are not independent (greedy ones are the same), so rates, intervals and tests count
prompts. Epochs of a sample are one prompt, and so are samples of one task whose prompts are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from probes.labels.label import REFUSED, Label

CONTENT = ("prompt_sha256", "prompt")
"""Columns that say what a prompt is; the first one present is taken. Without them a sample is known by its id."""
SAMPLE = ["task", "sample_id"]


def per_prompt(outcomes: pd.DataFrame, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """Outcomes with one row per (cell, task, prompt).

    A prompt's row is one of its answers: refused or not as most of its scored answers are (on a tie, as the first of
    them), and of these the first with the commonest label. A prompt without a scored answer keeps its first row.

    Args:
        outcomes: with cell, task, sample_id, label, and perhaps epoch, prompt_sha256, prompt.
        like: outcomes of one cell, by whose prompts samples are recognized as the same; default each cell's own.

    Returns:
        The chosen rows, cell by cell, with the `sample_id` of the first sample of each prompt, and `n_answers`.
    """
    if outcomes.empty:
        return outcomes.assign(n_answers=pd.Series(dtype=int))
    cells = [rows for _, rows in outcomes.groupby("cell", sort=False)]
    return pd.concat([_of_cell(rows, _first_samples(rows if like is None else like)) for rows in cells])


def refused_by_prompt(completions: pd.DataFrame) -> pd.DataFrame:
    """Whether each cell refused each prompt: [prompt, cell], nullable booleans, missing where no answer is scored.

    Args:
        completions: with cell, prompt and refused. Of several answers to one prompt most decide; on a tie, the first.
    """
    answers = completions.assign(refused=completions["refused"].astype(float)).groupby(["prompt", "cell"], sort=False)
    share, first = answers["refused"].mean(), answers["refused"].first()
    decided = (share.where(share != 0.5, first) > 0.5).astype("boolean").mask(share.isna())
    return decided.unstack("cell").reindex(completions["prompt"].drop_duplicates())


def repeats_said(outcomes: pd.DataFrame) -> str:
    """What a reader of the numbers must know of rows of `per_prompt` that stand for several answers; "" without."""
    repeated = outcomes["n_answers"] > 1
    if not repeated.any():
        return ""
    return (
        f"{int(repeated.sum())} of {len(outcomes)} prompts were answered more than once "
        f"({int(outcomes['n_answers'].sum())} answers); each counts once, by most of its answers"
    )


def _first_samples(outcomes: pd.DataFrame) -> Mapping[tuple[object, object], object]:
    """(task, sample id) → the id of the first sample of that task with the same prompt."""
    column = next((name for name in CONTENT if name in outcomes), None)
    if column is None:
        return {}
    samples = outcomes.drop_duplicates(SAMPLE)
    samples = samples[samples[column].notna() & (samples[column] != "")]
    first = samples.groupby(["task", column], sort=False)["sample_id"].transform("first")
    return dict(zip(zip(samples["task"], samples["sample_id"], strict=True), first, strict=True))


def _of_cell(rows: pd.DataFrame, first: Mapping[tuple[object, object], object]) -> pd.DataFrame:
    samples = zip(rows["task"], rows["sample_id"], strict=True)
    identities: list[Any] = [first.get(sample, sample[1]) for sample in samples]
    rows = rows.assign(sample_id=identities)
    counted = rows.assign(n_answers=rows.groupby(SAMPLE, sort=False)["label"].transform("size"))
    if (counted["n_answers"] == 1).all():
        return counted
    representatives = [
        places[0] if len(places) == 1 else places[_representative(rows["label"].iloc[places])]
        for places in counted.groupby(SAMPLE, sort=False).indices.values()
    ]
    return counted.iloc[sorted(representatives)]


def _representative(labels: pd.Series) -> int:
    """Which of a prompt's answers stands for all."""
    scored = labels.reset_index(drop=True)
    scored = scored[scored != Label.UNSCORED]
    if scored.empty:
        return 0
    refused = scored.isin(list(REFUSED))
    decided = bool(refused.iloc[0]) if refused.mean() == 0.5 else bool(refused.mean() > 0.5)
    agreeing = scored[refused == decided]
    counts = agreeing.groupby(agreeing, sort=False).transform("size")
    return int(counts.index[int(counts.argmax())])
