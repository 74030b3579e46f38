"""What `python -m probes.refusal` wrote, as other commands read it: its folder, or its table of outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.errors import InputError, what_lies_beside
from probes.harness.engine_marks import across_engines, marked
from probes.harness.names import BASELINE, CONTROL, derived_name
from probes.harness.results import checkpoints_of, read_result
from probes.labels.completions import completions_of
from probes.labels.outcomes import HOW, REQUIRED, outcomes_file, pair, read_outcomes
from probes.labels.per_prompt import per_prompt
from probes.labels.refused import SIDES


@dataclass(frozen=True)
class Answers:
    """The answers of a baseline and its cells.

    Attributes:
        model: what the baseline is called: the last part of its path, else the folder's name.
        outcomes: one row per (cell, task, prompt), decided (`probes.labels.refused.decide`); the baseline's under
            `probes.harness.names.BASELINE`, without the control on another engine.
        settings: what they were asked with; empty where only a table is there.
        warnings: what makes a comparison of these cells doubtful, and what was recorded while they were asked.
    """

    model: str
    outcomes: pd.DataFrame
    settings: Mapping[str, Any]
    warnings: list[str]

    @property
    def completions(self) -> pd.DataFrame:
        """The answers to harmful and harmless requests, see `probes.labels.completions.completions_of`."""
        return completions_of(self.outcomes)

    @property
    def described(self) -> Mapping[str, Mapping[str, Any]]:
        """Cell → what is known of its checkpoint: path, format, sha256; empty of a server or a bare table."""
        _, about = checkpoints_of(self.settings)
        return {name: {"path": _path(cell), **cell} for name, cell in about.items() if _path(cell)}

    def pair(self) -> list[str]:
        """The arguments that name baseline and cells on a command line, placeholders where they are not known."""
        paths = {name: str(cell["path"]) for name, cell in self.described.items()}
        cells = [f"{name}={paths.get(name, 'PATH')}" for name in cells_of(self.outcomes)]
        return ["--baseline", paths.get(BASELINE, "PATH"), *(part for cell in cells for part in ("--quantized", cell))]


def _path(cell: Mapping[str, Any]) -> str:
    settings = cell.get("settings")
    return str(settings.get("path", "")) if isinstance(settings, Mapping) else str(cell.get("path", ""))


def holds_outcomes(table: pd.DataFrame) -> bool:
    """Whether a table has a row per answer, as `probes.refusal` writes it, and not a row per cell."""
    return set(REQUIRED) <= set(table.columns) and "quantization" not in table


def read_answers(path: Path) -> Answers:
    """Read the folder or the table that `probes.refusal` wrote.

    Args:
        path: the folder given as `--out`, or a table of outcomes.

    Raises:
        InputError: no such folder or table, or a damaged one; no baseline in it, no cell beside it, or no answers to
            harmful requests.

    Example:
        >>> read_answers(Path("runs/model")).completions
    """
    if not path.exists():
        raise InputError(f"{path} does not exist", "a folder that probes.refusal wrote (--out)", what_lies_beside(path))
    file = outcomes_file(path)
    document = file.with_suffix(".json")
    recorded = read_result(document) if file.suffix == ".parquet" and document.is_file() else None
    outcomes = read_outcomes(file)
    outcomes = outcomes[outcomes["cell"] != CONTROL]
    _check(outcomes, file)
    doubts = [warning for cell in cells_of(outcomes) for warning in pair(outcomes, BASELINE, cell, force=True)[1]]
    settings = {} if recorded is None else recorded.settings
    warnings = dict.fromkeys([*([] if recorded is None else recorded.warnings), *doubts])
    one_each = marked(_with_prompts(per_prompt(outcomes)), across_engines(outcomes, BASELINE)).reset_index(drop=True)
    return Answers(_model(settings, file), one_each, settings, list(warnings))


def cells_of(outcomes: pd.DataFrame) -> list[str]:
    """The cells of a table without the baseline, in its order."""
    return [str(cell) for cell in outcomes["cell"].unique() if cell != BASELINE]


def _check(outcomes: pd.DataFrame, file: Path) -> None:
    cells = ", ".join(map(str, outcomes["cell"].unique()))
    if BASELINE not in outcomes["cell"].to_numpy():
        problem = f"{file} has no cell named {BASELINE} (it has {cells})"
        raise InputError(problem, "the baseline's answers under that name", "Rename it in the column cell")
    if not cells_of(outcomes):
        raise InputError(f"{file} holds the baseline alone", "answers of at least one cell beside it", HOW)
    for cell, rows in outcomes.groupby("cell", sort=False):
        if "refusal" not in rows["task"].to_numpy():
            problem = f"{file}: {cell} has no answers to harmful requests (the task refusal)"
            raise InputError(problem, f"the tasks {' and '.join(SIDES)}, the second where it was asked", HOW)


def _with_prompts(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Where no texts of prompts are there, or they do not tell prompts apart, their samples' names stand for them."""
    if "prompt" in outcomes and not outcomes.duplicated(["cell", "task", "prompt"]).any():
        return outcomes
    return outcomes.assign(prompt=outcomes["sample_id"])


def _model(settings: Mapping[str, Any], file: Path) -> str:
    path = _path(checkpoints_of(settings)[1].get(BASELINE, {}))
    known = derived_name(path) if path else ""
    return known or file.resolve().parent.name or "model"
