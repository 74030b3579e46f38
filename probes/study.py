"""One file in, one run folder out: all probes on all cells of all models, from where an interruption left them.

    python -m probes.study init study.toml
    python -m probes.study run study.toml --out runs/study
    python -m probes.study status runs/study

The same from Python:

    >>> from probes.study import read_study, run_study
    >>> run = run_study(read_study("study.toml"))
    >>> run.matrix, run.table("direction")
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from interp.documents import read_text
from interp.errors import InputError
from probes import cli, tables
from probes.cli import Exit, console, log
from probes.drift import bounds_of, say_bounds
from probes.engine_marks import sentences
from probes.options import check_writable
from probes.results import Result, read_result
from probes.study_file import Study, parse_study, read_study
from probes.study_models import located
from probes.study_run import measure_all
from probes.study_state import (
    COPY,
    STATE,
    Part,
    Record,
    RunFolder,
    Status,
    as_table,
    judge_records,
    other_versions,
    read_state,
    records,
)
from probes.study_steps import ALWAYS
from probes.study_tables import write_tables
from probes.summary import render

__all__ = ["Study", "StudyRun", "open_run", "parse_study", "read_study", "run_study", "study_status"]

TEMPLATE = Path(__file__).with_name("data") / "study.toml"
SHORT = {Status.DONE: "✓", Status.STALE: "~", Status.FAILED: "✗", Status.MISSING: "·"}
HEADER = 4
"""Letters of a step's name above its column, so that ten steps fit on 80 columns beside long names."""


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
        """One row per cell of every model, see `probes.summary.summarize`; no rows where nothing is measured."""
        found = self._result(self.path / "matrix.json")
        return pd.DataFrame() if found is None else found.table

    @property
    def failures(self) -> pd.DataFrame:
        """The rows of `status` whose step failed, with the errors."""
        return self.status[self.status["status"] == Status.FAILED]

    def table(self, probe: str) -> pd.DataFrame:
        """A probe's table, with the model's name as the first column; no rows where it is not measured.

        Args:
            probe: "entropy", "completions" … as the files in the models' folders are called.
        """
        found = {m.name: self._result(self.path / m.name / f"{probe}.json") for m in self.study.models}
        parts = [result.table.assign(model=name) for name, result in found.items() if result is not None]
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
    study, page = _study_of(path), path / "report.html"
    table = as_table(_records(study, RunFolder.at(path), looking=True))
    return StudyRun(path, study, table, page if page.exists() else None)


def study_status(study: Study, out: str | Path) -> pd.DataFrame:
    """What is done, stale, failed or missing; opens no model.

    Returns:
        One row per (model, cell, step): status, key (hash of what determines the part), seconds, error.
    """
    folder = RunFolder.at(Path(out))
    return as_table(_records(study, folder))


def _records(study: Study, folder: RunFolder, looking: bool = False) -> dict[Part, Record]:
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


def _study_of(path: Path) -> Study:
    RunFolder.at(path)
    if not (path / STATE).exists():
        raise InputError(f"{path} is no run folder: it has no {STATE}", "a folder that `probes.study run` wrote")
    directory = Path(read_state(path).directory)
    return parse_study(read_text(path / COPY), directory, str(path / COPY), on_disk=False)


def _report(path: Path) -> Path | None:
    """Write the report of a run."""
    from probes import report

    return report.write(path)[0]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The study file.")]
Out = Annotated[
    Path | None, typer.Option(metavar="RUN", help="The run folder.", show_default="the file's `out`, or runs/NAME")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def init(file: File = Path("study.toml")) -> None:
    """Write a commented study file to start from; never overwrites."""
    if file.exists():
        raise InputError(f"{file} exists", "a new name", "Give one, or edit this file")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    typer.echo(f"written: {file}; then: python -m probes.study run {file}")


@app.command()
def run(file: File, out: Out = None) -> None:
    """Measure what is missing or stale.

    Exit codes: 0 all is measured, 2 bad input, 3 a bound is exceeded, 4 nothing could be measured or nothing says that
    a bound holds, 5 some cells failed.
    """
    study = read_study(file)
    path = _out(study, file, out)
    with cli.resumable(lambda: any(path.glob("*/parts/*/*.key.json"))):
        found = run_study(study, path)
    show(found)
    raise typer.Exit(exit_code(found))


@app.command()
def status(
    where: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="The study file, or a run folder.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What is done, stale, failed or missing."""
    if where.is_dir():
        study, path = _study_of(where), where
    else:
        study = read_study(where)
        path = _out(study, where, out)
    folder = RunFolder.at(path)
    found = _records(study, folder, looking=where.is_dir())
    table = as_table(found)
    for line in other_versions(folder, found):
        cli.warn(line)
    if as_json:
        typer.echo(json.dumps({"run": str(path), "steps": json.loads(table.to_json(orient="records"))}, indent=1))
        return
    console.print(tables.render(f"{path}: {_summary(table)}", _wide(table), _columns(table)))
    for _, row in table[table["error"] != ""].iterrows():
        console.print(f"{row['model']} · {row['cell']} · {row['step']}: {row['error']}", markup=False, highlight=False)


def _out(study: Study, file: Path, out: Path | None) -> Path:
    return out or (Path(study.out) if study.out else Path("runs") / file.stem)


def _summary(table: pd.DataFrame) -> str:
    counts = table["status"].value_counts()
    return ", ".join(f"{SHORT[status]} {counts[status]} {status}" for status in Status if status in counts)


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row per cell, a column per step."""
    shown = table.assign(shown=table["status"].map(lambda status: SHORT[Status(status)]))
    wide = shown.pivot(index=["model", "cell"], columns="step", values="shown")
    order = pd.MultiIndex.from_frame(table[["model", "cell"]].drop_duplicates())
    return wide.reindex(order).fillna("").reset_index()  # judges have a row of their own


def _columns(table: pd.DataFrame) -> tables.Columns:
    steps = {step[:HEADER]: tables.text(step) for step in table["step"].drop_duplicates()}
    return {"model": tables.text("model"), "cell": tables.text("cell"), **steps}


def exit_code(found: StudyRun) -> Exit:
    """Of a run, see `run`."""
    answered = found.status[found.status["step"] == ALWAYS]
    if not (answered["status"] == Status.DONE).any():
        return Exit.NOTHING_MEASURED
    exceeded, unproven = _bounds(found)
    say_bounds(exceeded, unproven)
    if exceeded:
        return Exit.BOUND_EXCEEDED
    if unproven:
        return Exit.NOTHING_MEASURED
    return Exit.PARTLY_MEASURED if len(found.failures) else Exit.MEASURED


def _bounds(found: StudyRun) -> tuple[list[str], list[str]]:
    """What exceeds a bound of the study, and where nothing says that one holds."""
    limits = bounds_of(found.study.bounds.max_refusal_drop, found.study.bounds.max_over_refusal_rise)
    models = list(found.table("drift").groupby("model", sort=False)) if limits else []
    exceeded = [f"{model}: {line}" for model, part in models for bound in limits for line in bound.exceeded(part)]
    unproven = [f"{model}: {line}" for model, part in models for bound in limits for line in bound.unproven(part)]
    return exceeded, unproven


def show(found: StudyRun) -> None:
    """Print a run's matrix, what a reader of it must know, what failed, and where everything is."""
    document = found.path / "matrix.json"
    if document.exists():
        _show_matrix(read_result(document))
    for _, row in found.failures.drop_duplicates(["model", "cell", "error"]).iterrows():
        log.print(f"failed: {row['model']} · {row['cell']}: {row['error']}", style="red", markup=False, highlight=False)
    seconds = found.status.groupby("step", sort=False)["seconds"].sum()
    took = ", ".join(f"{step} {time:.1f} s" for step, time in seconds.items())
    log.print(f"measured in {seconds.sum():.0f} s ({took})", highlight=False)
    for what, path in {"written": found.path, "report": found.report}.items():
        if path is not None:
            log.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)


def _show_matrix(matrix: Result) -> None:
    measured = matrix.table.groupby("model")["refusal_rate"].transform("count") > 0
    for _, rows in matrix.table[measured].groupby("model", sort=False):
        console.print(render(rows, console.width))
        for cell, note in rows.loc[rows["note"].fillna("") != "", ["cell", "note"]].itertuples(index=False):
            console.print(f"{cell}: {note}", markup=False, highlight=False)
    for said in sentences(matrix.table, matrix.table["model"] + " " + matrix.table["cell"]):
        console.print(said, markup=False, highlight=False)
    about = matrix.settings[str(matrix.table["model"].iloc[0])]
    if "quality" in about:
        console.print(f"quality: {about['quality']}", markup=False, highlight=False)
    console.print(f"RTSI calibration: {about['rtsi_calibration']}", markup=False, highlight=False)
    for warning in matrix.warnings:
        cli.warn(warning)


if __name__ == "__main__":
    cli.run(app)
