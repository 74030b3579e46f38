"""The tables of a run from a folder of answers alone, as `python -m probes.refusal --out DIR` writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probes.drift import probe as drift
from probes.harness.engine_marks import ENGINE
from probes.harness.names import BASELINE
from probes.harness.results import Result
from probes.labels.answers import Answers, read_answers
from probes.labels.outcomes import ANSWERS
from probes.labels.refused import counted_by
from probes.rtsi.rows import model_matrix

MADE_HERE = ("matrix", ANSWERS, "completions", "drift", "rtsi", "judges")
"""Results of a folder that are not taken from it: they are made of the answers."""


def holds_answers(path: Path) -> bool:
    """Whether a folder was written by `probes.refusal`; a study keeps answers in its models' folders."""
    return (path / f"{ANSWERS}.parquet").is_file()


def run_of_answers(path: Path, beside: Mapping[str, Result]) -> tuple[str, Result, dict[str, Result]]:
    """The model's name, the matrix of its cells, and the model's tables.

    Args:
        path: the folder.
        beside: what other probes wrote into the same folder; what they measured of these cells is in the matrix, too.

    Raises:
        InputError: as `probes.labels.answers.read_answers`.
    """
    answers = read_answers(path)
    completions = answers.completions
    tables = {name: result for name, result in beside.items() if name not in MADE_HERE}
    tables |= {
        ANSWERS: Result(ANSWERS, answers.outcomes, answers.settings, answers.warnings),
        "completions": Result("completions", completions, {"outcome": counted_by(completions)}),
        "drift": _drift(answers),
    }
    return answers.model, model_matrix(answers.model, _described(answers), tables, _settings(answers)), tables


def _drift(answers: Answers) -> Result:
    determinism = answers.settings.get("determinism")
    return drift.measure(answers.outcomes, BASELINE, determinism=determinism, force=True)


def _described(answers: Answers) -> pd.DataFrame:
    """cell, format, bits_per_weight and note, as a study describes its cells; no checkpoint is opened."""
    known = answers.described
    return pd.DataFrame(
        {"cell": str(cell), "format": known.get(str(cell), {}).get("format", ""), "bits_per_weight": np.nan, "note": ""}
        for cell in answers.outcomes["cell"].unique()
    )


def _settings(answers: Answers) -> dict[str, Any]:
    """Where the checkpoints are and what answered, as the report names them."""
    cells = dict(answers.described)
    baseline = cells.pop(BASELINE, {})
    engines: Iterable[Any] = answers.outcomes[ENGINE].dropna().unique() if ENGINE in answers.outcomes else ()
    rendering = {name: baseline.get(name, "") for name in ("template", "system")}
    return {"baseline": baseline, "cells": cells} | rendering | {"engine": ", ".join(map(str, engines))}
