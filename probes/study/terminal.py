"""What a study prints when it ends, and its exit code."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp import cli
from interp.cli import Exit, console, log
from probes.drift.probe import Gate, bounds_of
from probes.harness import tables
from probes.harness.engine_marks import sentences
from probes.harness.results import Result, read_result
from probes.study.run import StudyRun
from probes.study.shards import Shard
from probes.study.state import JUDGES, PartStatus
from probes.study.steps import ALWAYS
from probes.study.summary import baseline_note, render
from probes.study.workers import holder

SHORT = {PartStatus.DONE: "✓", PartStatus.STALE: "~", PartStatus.FAILED: "✗", PartStatus.MISSING: "·"}
WORKERS: tables.Columns = {
    "host": tables.text("host"),
    "pid": tables.text("pid"),
    "shard": tables.text("shard"),
    "": tables.text("state"),
    "model": tables.text("model"),
    "parts": tables.number("finished", "d"),
    "failed": tables.number("failed", "d"),
    "seconds": tables.number("seconds", ".0f"),
    "silent": tables.number("silent", ".0f"),
}
"""The columns of a run's workers; the last is how many seconds ago one that has not ended showed that it lives."""
HEADER = 4
"""Letters of a step's name above its column, so that `MANY` steps fit on 80 columns beside long names."""
MANY = 10


def status_summary(table: pd.DataFrame) -> str:
    """How many parts are done, stale, failed or missing, in one line."""
    counts = table["status"].value_counts()
    return ", ".join(f"{SHORT[status]} {counts[status]} {status}" for status in PartStatus if status in counts)


def wide_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row per cell, a column per step."""
    shown = table.assign(shown=table["status"].map(lambda status: SHORT[PartStatus(status)]))
    wide = shown.pivot(index=["model", "cell"], columns="step", values="shown")
    order = pd.MultiIndex.from_frame(table[["model", "cell"]].drop_duplicates())
    return wide.reindex(order).fillna("").reset_index()  # judges have a row of their own


def step_columns(table: pd.DataFrame) -> tables.Columns:
    """The columns of the status table: model, cell, and one for each step."""
    names = list(table["step"].drop_duplicates())
    steps = {_header(name, names): tables.text(name) for name in names}
    return {"model": tables.text("model"), "cell": tables.text("cell"), **steps}


def _header(name: str, names: Sequence[str]) -> str:
    """The beginning of a step's name; of many, two letters or as many as tell it from the others."""
    if len(names) <= MANY:
        return name[:HEADER]
    return next(name[:n] for n in range(2, len(name) + 1) if sum(other.startswith(name[:n]) for other in names) == 1)


def exit_code(found: StudyRun) -> Exit:
    """The exit code of a run, see the command `run`."""
    if (code := _measured(found.status)) is Exit.NOTHING_MEASURED:
        return code
    gate = _gate(found)
    gate.say()
    return code if gate.exit is Exit.MEASURED else gate.exit


def _measured(status: pd.DataFrame) -> Exit:
    """Whether all parts are measured, or some, or no answers."""
    done = status["status"] == PartStatus.DONE
    if not done[status["step"] == ALWAYS].any():
        return Exit.NOTHING_MEASURED
    return Exit.MEASURED if done.all() else Exit.PARTLY_MEASURED


def show_run(found: StudyRun) -> Exit:
    """Print a whole run, and return its exit code."""
    show(found)
    return exit_code(found)


def show_shard(found: StudyRun, shard: Shard) -> Exit:
    """Print what a shard has measured, and return its exit code."""
    _show_failures(found)
    _show_seconds(found)
    names = ", ".join(found.status["model"].drop_duplicates()) or "no models: there are more shards than models"
    log.print(f"shard {shard}: {names}: {status_summary(found.status)}", markup=False, highlight=False)
    cli.ending([found.path], [["probes.study", "status", found.path], ["probes.study", "merge", found.path]])
    return Exit.MEASURED if found.status.empty else _measured(found.status)


def _gate(study_run: StudyRun) -> Gate:
    """What the bounds of the study say of its models."""
    limits = bounds_of(study_run.study.bounds.max_refusal_drop, study_run.study.bounds.max_over_refusal_rise)
    models = dict(list(study_run.table("drift").groupby("model", sort=False))) if limits else {}
    return Gate.of({f"{model!s}: ": part for model, part in models.items()}, limits)


def show(found: StudyRun) -> None:
    """Print a run's matrix, what a reader of it must know, what failed, and where everything is."""
    document = found.path / "matrix.json"
    if document.exists():
        _show_matrix(read_result(document))
    _show_failures(found)
    _show_left(found)
    _show_seconds(found)
    after = [["probes.study", "status", found.path]]
    after += [["probes.predict", found.path]] if len(found.study.models) > 1 else []
    cli.ending([path for path in (found.path, found.report) if path is not None], after)


def _show_failures(found: StudyRun) -> None:
    for _, row in found.failures.drop_duplicates(["model", "cell", "error"]).iterrows():
        log.print(f"failed: {row['model']} · {row['cell']}: {row['error']}", style="red", markup=False, highlight=False)


def _show_left(found: StudyRun) -> None:
    """Which models are not measured to the end, and who is at it."""
    left = found.status[found.status["status"].isin([PartStatus.MISSING, PartStatus.STALE])]
    for model, parts in left[left["step"] != JUDGES].groupby("model", sort=False):
        owner = holder(found.path, str(model))
        who = "and nobody is at work" if owner is None else f"{owner} is at work"
        log.print(f"{model}: {len(parts)} parts are not measured yet, {who}", style="yellow", highlight=False)


def _show_seconds(found: StudyRun) -> None:
    seconds = found.status.groupby("step", sort=False)["seconds"].sum()
    took = ", ".join(f"{step} {time:.1f} s" for step, time in seconds.items())
    log.print(f"measured in {seconds.sum():.0f} s ({took})", highlight=False)


def _show_matrix(matrix: Result) -> None:
    measured = matrix.table.groupby("model")["refusal_rate"].transform("count") > 0
    for _, rows in matrix.table[measured].groupby("model", sort=False):
        if caveat := baseline_note(rows):
            console.print(f"{caveat}.", markup=False, highlight=False)
        console.print(render(rows, console.width))
        for cell, note in rows.loc[rows["note"].fillna("") != "", ["cell", "note"]].itertuples(index=False):
            console.print(f"{cell}: {note}", markup=False, highlight=False)
    for sentence in sentences(matrix.table, matrix.table["model"] + " " + matrix.table["cell"]):
        console.print(sentence, markup=False, highlight=False)
    about = matrix.settings[str(matrix.table["model"].iloc[0])]
    if "quality" in about:
        console.print(f"quality: {about['quality']}", markup=False, highlight=False)
    console.print(f"RTSI calibration: {about['rtsi_calibration']}", markup=False, highlight=False)
    for warning in matrix.warnings:
        cli.warn(warning)
