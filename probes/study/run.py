"""Run a study, or open a run that was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interp.documents import read_text
from interp.errors import InputError
from probes.harness.options import check_writable
from probes.harness.results import Result, read_result
from probes.study.checkpoints import located
from probes.study.measuring import measure_all
from probes.study.reader import parse_study
from probes.study.schema import Study
from probes.study.state import (
    COPY,
    STATE,
    PartStatus,
    Record,
    RunFolder,
    StudyPart,
    as_table,
    judge_records,
    read_state,
    records,
)
from probes.study.tables import write_tables


@dataclass(frozen=True)
class StudyRun:
    """What a study has measured.

    Attributes:
        path: the run folder.
        study: its settings.
        status: one row per (model, cell, step), see `study_status`.
        report: the page, or None where there is none.
    """

    path: Path
    study: Study
    status: pd.DataFrame
    report: Path | None = None

    @property
    def matrix(self) -> pd.DataFrame:
        """One row per cell of every model, see `probes.matrix.rows.summarize`; no rows where nothing is measured."""
        result = self._result(self.path / "matrix.json")
        return pd.DataFrame() if result is None else result.table

    @property
    def failures(self) -> pd.DataFrame:
        """The rows of `status` whose step failed, with the errors."""
        return self.status[self.status["status"] == PartStatus.FAILED]

    def table(self, probe: str) -> pd.DataFrame:
        """A probe's table, with the model's name as the first column; no rows where it is not measured.

        Args:
            probe: "entropy", "completions" … as the files in the models' folders are called.
        """
        results = {m.name: self._result(self.path / m.name / f"{probe}.json") for m in self.study.models}
        parts = [result.table.assign(model=name) for name, result in results.items() if result is not None]
        if not parts:
            return pd.DataFrame()
        joined = pd.concat(parts, ignore_index=True)
        return joined[["model", *(name for name in joined if name != "model")]]

    @staticmethod
    def _result(document: Path) -> Result | None:
        return read_result(document) if document.exists() else None


def run_study(study: Study, out: str | Path | None = None) -> StudyRun:
    """Measure what a run folder lacks, and write its tables and its report.

    Args:
        study: of `read_study` or `parse_study`.
        out: the run folder; default what the study says, else runs/study.

    Returns:
        The run; cells that could not be measured are in its `failures`.

    Raises:
        InputError: a prompt file that cannot be used; a folder that cannot be written, holds something else or a run of
            another schema, or is in use by another process. Nothing is overwritten then.

    Example:
        >>> run = run_study(read_study("study.toml"))
        >>> run.matrix, run.table("direction")
    """
    path = Path(out or study.out or "runs/study")
    check_writable(path)
    _check_copy(path, study)
    folder = RunFolder.at(path)
    with folder.lock():
        folder = RunFolder.at(path)  # another process may have finished meanwhile
        known = measure_all(study, folder)
        matrix = write_tables(study, folder, known)
    return StudyRun(path, study, as_table(known), None if matrix is None else _report(path))


def open_run(path: str | Path) -> StudyRun:
    """A run folder as it is; nothing is measured, and neither checkpoints nor prompts have to be there.

    Raises:
        InputError: no study's run folder, or one of another schema.
    """
    path = Path(path)
    study, page = study_of(path), path / "report.html"
    table = as_table(records_of(study, RunFolder.at(path), looking=True))
    return StudyRun(path, study, table, page if page.exists() else None)


def study_status(study: Study, out: str | Path) -> pd.DataFrame:
    """What is done, stale, failed or missing; opens no model.

    Returns:
        One row per (model, cell, step): status, key (hash of what determines the part), seconds, error.
    """
    folder = RunFolder.at(Path(out))
    return as_table(records_of(study, folder))


def records_of(study: Study, folder: RunFolder, looking: bool = False) -> dict[StudyPart, Record]:
    """What is known of every part of a study, its judges' included."""
    places = {model.name: located(study, model) for model in study.models}
    return records(study, folder, places, looking) | judge_records(study, folder)


def _check_copy(path: Path, study: Study) -> None:
    """A run keeps a copy of its study file, which must not replace another file of that name."""
    copy = path / COPY
    if copy.exists() and not (path / STATE).exists() and copy.read_bytes().strip() != study.text.encode().strip():
        raise InputError(
            f"{copy} is there already, and no run is: the copy of the study file would replace it",
            "a new folder, or that of a run",
            "Give another one with --out",
        )


def study_of(path: Path) -> Study:
    """The study of a run folder, from the copy that lies in it."""
    RunFolder.at(path)
    if not (path / STATE).exists():
        raise InputError(f"{path} is no run folder: it has no {STATE}", "a folder that `probes.study run` wrote")
    directory = Path(read_state(path).directory)
    return parse_study(read_text(path / COPY), directory, str(path / COPY), on_disk=False)


def _report(path: Path) -> Path | None:
    """Write the report of a run."""
    from probes.report import files

    return files.write(path)[0]
