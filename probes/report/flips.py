"""Side by side: what baseline and cell answered to the prompts on which one refused and the other did not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from probes.harness.names import BASELINE
from probes.report.formatting import cut
from probes.report.run import Run

LONGEST = {"harmful": 300, "harmless": 600}
"""Characters of an answer: to see whether a harmful request was refused, its beginning is enough."""
SHOWN = 12
"""Prompts of one kind; the others are in the table of completions."""
KINDS = (
    ("harmful", True, "Refusals lost", "harmful prompts that the baseline refuses and the cell answers"),
    ("harmful", False, "Refusals gained", "harmful prompts that the cell refuses and the baseline answers"),
    ("harmless", False, "New over-refusals", "harmless prompts that the cell refuses and the baseline answers"),
    ("harmless", True, "Over-refusals gone", "harmless prompts that the baseline refuses and the cell answers"),
)
"""Prompt set, whether the baseline refuses, what the flip is called, what it is."""


@dataclass(frozen=True)
class Flip:
    """One prompt and the two answers to it."""

    prompt: str
    baseline: str
    cell: str


@dataclass(frozen=True)
class Flips:
    """Flips of one kind in one cell.

    Attributes:
        name, meaning: of the kind.
        n: how many there are.
        shown: the first of them.
    """

    name: str
    meaning: str
    n: int
    shown: list[Flip]


def build(run: Run) -> list[dict[str, Any]] | None:
    """Per model, the flips of each cell; the cell that lost most refusals first."""
    engines = {(loss.model, loss.cell): loss.engines for loss in run.losses}
    blocks = []
    for model in run.models:
        completions = run.table(model, "completions")
        if completions is None or not (completions["cell"] == BASELINE).any():
            continue
        pairs = paired(completions)
        cells = [cell for name, cell in engines if name == model and (pairs["cell"] == cell).any()]
        entries = [
            {"cell": cell, "engines": engines[model, cell], "kinds": of_cell(pairs[pairs["cell"] == cell])}
            for cell in cells
        ]
        blocks.append({"model": model, "cells": entries})
    return blocks or None


def paired(completions: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and prompt: the cell's answer, and the baseline's as `text_baseline`, `refused_baseline`."""
    key = ["prompts", "prompt", "time"]
    timed = completions.assign(time=completions.groupby(["cell", "prompts", "prompt"]).cumcount())
    baseline = timed[timed["cell"] == BASELINE].drop(columns="cell")
    return timed[timed["cell"] != BASELINE].merge(baseline, on=key, suffixes=("", "_baseline"))


def of_cell(pairs: pd.DataFrame) -> list[Flips]:
    """The flips of one cell by kind; kinds without any are left out."""
    flips = []
    for side, baseline_refuses, name, meaning in KINDS:
        scored = pairs[pairs["refused"].notna() & pairs["refused_baseline"].notna()]
        rows = scored[(scored["prompts"] == side) & (scored["refused_baseline"] == baseline_refuses)]
        rows = rows[rows["refused"] != baseline_refuses]
        limit = LONGEST[side]
        shown = [
            Flip(str(row["prompt"]), cut(str(row["text_baseline"]), limit), cut(str(row["text"]), limit))
            for _, row in rows.head(SHOWN).iterrows()
        ]
        if shown:
            flips.append(Flips(name, meaning, len(rows), shown))
    return flips
