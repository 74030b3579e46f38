"""Run a study, or open a run that was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from interp.claims import Owner, held
from interp.cli import log
from interp.documents import read_text
from interp.errors import InputError
from probes.harness.options import check_writable
from probes.harness.results import Result, read_result
from probes.study.checkpoints import located
from probes.study.cluster import measure_on_cluster
from probes.study.keys import agreement
from probes.study.measuring import Work, measure_all
from probes.study.reader import parse_study
from probes.study.schema import Study
from probes.study.shards import Shard
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
from probes.study.step import Asked
from probes.study.tables import write_tables
from probes.study.workers import FOLDER as WORKERS
from probes.study.workers import joined


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


def run_study(
    study: Study,
    out: str | Path | None = None,
    *,
    shard: Shard | None = None,
    ray: str | None = None,
    failed_only: bool = False,
    changed: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> StudyRun:
    """Measure what a run folder lacks, and write its tables and its report.

    Several processes, on any machines that share the folder's disk, may do so at once: each model is measured by one of
    them, and whoever ends last has all tables. What was left to others is in none of the `failures`, and not done.

    Args:
        study: of `read_study` or `parse_study`.
        out: the run folder; default what the study says, else runs/study.
        shard: measure only its models, and write no tables: `merge_study` does when all shards are over.
        ray: address of a Ray cluster whose workers measure the models, one each at a time; "auto" for the one that this
            machine belongs to, "local" for one that is started here. All of its machines must see the folder.
        failed_only: measure only what failed before.
        changed: a shard may go on in a folder whose shards had another study.
        stop: asked before each part whether to end, by raising `interp.cli.Requeue`.

    Returns:
        The run, or a shard's part of it; cells that could not be measured are in its `failures`.

    Raises:
        InputError: a prompt file that cannot be used; a folder that cannot be written, holds something else or a run of
            another schema, or in which another process measures another study. Nothing is overwritten then.

    Example:
        >>> run = run_study(read_study("study.toml"))
        >>> run.matrix, run.table("direction")
    """
    path = Path(out or study.out or "runs/study")
    check_writable(path)
    _check_copy(path, study)
    folder = RunFolder.at(path)
    models = [model.name for model in study.models] if shard is None else shard.models(study)
    common = agreement(study, Asked.of(study))
    with joined(path, common, "" if shard is None else str(shard), changed) as worker:
        work = Work(study, folder, worker, models, failed_only, stop)
        known = measure_all(work) if ray is None else measure_on_cluster(work, ray)
    if shard is not None:
        return StudyRun(path, study, as_table({part: r for part, r in known.items() if part.model in models}))
    return _merged(study, folder, known)


def merge_study(path: str | Path, study: Study | None = None, report: bool = True) -> StudyRun:
    """Write the tables and the report of whatever a run folder holds, for example of finished shards.

    Args:
        path: the run folder.
        study: its study; by default the copy that lies in it.
        report: False to write the tables alone.

    Returns:
        The run; what is not measured yet is in its `status`.

    Raises:
        InputError: no study's run folder, or one of another schema; a checkpoint of a measured cell is not there.

    Example:
        >>> merge_study("runs/study").matrix
    """
    path = Path(path)
    folder, study = RunFolder.at(path), study or study_of(path)
    return _merged(study, folder, records_of(study, folder, looking=True), report)


def _merged(study: Study, folder: RunFolder, known: dict[StudyPart, Record], report: bool = True) -> StudyRun:
    with held(folder.path / WORKERS / "tables", _waiting):
        matrix = write_tables(study, folder, known)
        page = _report(folder.path) if report and matrix is not None else None
    return StudyRun(folder.path, study, as_table(known), page)


def _waiting(owner: Owner | None) -> None:
    log.print(f"waiting for {owner or 'another process'}, who writes the tables", markup=False, highlight=False)


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
