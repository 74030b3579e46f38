"""What the command reads: tables of cells, and what `probes.refusal` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interp.errors import InputError
from probes.harness.engine_marks import across_engines, marked
from probes.harness.names import BASELINE
from probes.harness.results import read_result
from probes.harness.table_files import read_table
from probes.labels.answers import Answers, holds_outcomes, read_answers
from probes.labels.outcomes import ANSWERS, HOW
from probes.labels.refused import JUDGE, by_cell
from probes.matrix.rows import judge_rates, over_refusal_table, quality_table, refusal_rates

TABLES = (ANSWERS, "matrix")
"""The stems of what is read of a folder: the first that is there."""
QUALITY_COLUMN = "quality"
"""The quality of cells in a folder of answers beside which `probes.quality` wrote."""


@dataclass(frozen=True)
class CellTables:
    """Tables with a row per cell, and the answers that some of them were counted from.

    Attributes:
        tables: name → table with model and quantization.
        answers: by the names of their tables.
    """

    tables: Mapping[str, pd.DataFrame]
    answers: Mapping[str, Answers]

    @property
    def refused(self) -> dict[str, Mapping[str, pd.Series]]:
        """Model → whether each cell refused each harmful prompt, where the answers are there."""
        return {answers.model: by_cell(answers.completions) for answers in self.answers.values()}

    @property
    def warnings(self) -> list[str]:
        """The warnings of all answers."""
        return [warning for answers in self.answers.values() for warning in answers.warnings]


def read_cells(paths: Sequence[Path]) -> CellTables:
    """Read tables of cells, and folders or tables of answers, which get a row per cell.

    Args:
        paths: tables (.csv, .parquet, .json, .jsonl), or folders that `probes.refusal` or a study wrote. Where
            `probes.quality` wrote into the same folder, its quality is taken, too.

    Raises:
        InputError: a table or a folder that cannot be used.
    """
    tables: dict[str, pd.DataFrame] = {}
    answers: dict[str, Answers] = {}
    for path in paths:
        read = table_or_answers(path)
        if isinstance(read, Answers):
            answers[str(path)] = read
            read = rows_of(read, table_file(path).parent)
        tables[str(path)] = read
    return CellTables(tables, answers)


def table_or_answers(path: Path) -> pd.DataFrame | Answers:
    """A table with a row per cell as it is, or the answers of a baseline and its cells.

    Args:
        path: a table, or a folder that `probes.refusal` or a study wrote.

    Raises:
        InputError: a table or a folder that cannot be used.
    """
    file = table_file(path)
    table = read_table(file)
    return read_answers(file) if holds_outcomes(table) else table


def table_file(path: Path) -> Path:
    """The table to read of a folder; a file stays as it is.

    Raises:
        InputError: a folder without answers and without a matrix.
    """
    if not path.is_dir():
        return path
    files = [path / f"{stem}.parquet" for stem in TABLES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        expected = "a folder that probes.refusal wrote (--out), or a study's"
        raise InputError(f"{path} holds no {' and no '.join(file.name for file in files)}", expected, HOW)
    return file


def rows_of(answers: Answers, folder: Path) -> pd.DataFrame:
    """A row per cell: the refusals and what the prompts can tell, over-refusals, quality and a judge's rate if known.

    Args:
        answers: of a baseline and its cells.
        folder: where `probes.quality` may have written its table.
    """
    completions, outcomes = answers.completions, answers.outcomes
    rows = refusal_rates(completions)
    beside = [over_refusal_table(completions)] if (completions["prompts"] == "harmless").any() else []
    beside += [judge_rates(outcomes)] if JUDGE in outcomes else []
    quality = folder / "quality.json"
    beside += [quality_table(read_result(quality).table)] if quality.is_file() else []
    for table in beside:
        rows = rows.merge(table, on="cell", how="left", validate="one_to_one")
    rows = marked(rows, across_engines(outcomes, BASELINE)).rename(columns={"cell": "quantization"})
    n = rows["n_total"].where(rows["n_total"] > 0)
    return rows.assign(model=answers.model, baseline=BASELINE, refusal_rate_n=n)


def quality_column(cells: CellTables, quality: str | None) -> str | None:
    """The column of the quality metric: the one that was asked for, else what was measured beside answers, if anything.

    Raises:
        InputError: none is named, and the tables are no answers, so that it may be any column.
    """
    if quality is not None:
        return quality
    columns = dict.fromkeys(column for table in cells.tables.values() for column in map(str, table))
    if not cells.answers:
        problem = "Which column is the quality of the cells is not said"
        raise InputError(problem, f"one of {', '.join(columns)}", "Name it with --quality")
    return QUALITY_COLUMN if QUALITY_COLUMN in columns else None
