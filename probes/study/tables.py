"""The tables of a run: the parts of all cells joined for each model, the matrix of all models, drift, judges."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from interp.checkpoint import open_checkpoint
from interp.cli import log
from interp.errors import InputError
from interp.redaction import redact
from probes.drift import probe as drift
from probes.harness.engine_marks import across_engines, marked
from probes.harness.names import BASELINE
from probes.harness.results import Result, join_cells
from probes.labels.refused import BROADER, OUTCOME, by_cell, counted_by, decide, with_outcomes
from probes.matrix.regimes import STUDY
from probes.matrix.rows import add_regimes
from probes.rtsi.index import RTSI
from probes.rtsi.rows import cell_rows
from probes.study.checkpoints import located
from probes.study.keys import judges_key
from probes.study.schema import Model, Study
from probes.study.state import (
    JUDGES,
    PartStatus,
    Record,
    RunFolder,
    StudyPart,
    judge_records,
    judged,
    read_marker,
    reason_of,
)
from probes.study.steps import ALWAYS
from probes.study.summary import describe_cells

QUALITY_NOTE = "BERTScore F1 against {}, vectors: {}"


def write_tables(study: Study, folder: RunFolder, known: dict[StudyPart, Record]) -> Result | None:
    """Write every model's tables, and the matrix; None where no cell is measured.

    A cell that could not be measured has a row that is all undefined, with the reason. How the judges fared is added to
    `known` and kept; those that failed are asked again by the next run.
    """
    tables: dict[str, dict[str, Result]] = {}
    for model in study.models:
        own = {part: record for part, record in known.items() if part.model == model.name}
        joined = _joined(folder, own)
        _forget(folder, model.name)
        if "completions" not in joined:
            continue
        marks = across_engines(joined["refusal"].table, BASELINE)
        for name in ("refusal", "completions"):
            joined[name] = replace(joined[name], table=marked(joined[name].table, marks))
        outcomes = _relabelled(joined["refusal"])
        joined["refusal"] = replace(joined["refusal"], table=outcomes.drop(columns=OUTCOME))
        if study.judges.models:
            try:
                joined[JUDGES] = _judged(study, outcomes, folder.path / model.name / "verdicts.sqlite")
                outcomes = decide(joined[JUDGES].table)
                folder.failures.pop(judged(model.name), None)
                folder.keys[judged(model.name)] = judges_key(study)
            except Exception as error:  # a judge is a server or a model: whatever it does, the rest is measured
                folder.failures[judged(model.name)] = ("", reason_of(error))
                if not isinstance(error, InputError):
                    log.print(redact("".join(traceback.format_exception(error))), markup=False, highlight=False)
        joined["completions"] = _with_outcomes(joined["completions"], outcomes)
        joined["drift"] = _drift(study, outcomes)
        for result in joined.values():
            result.write(folder.path / model.name)
        tables[model.name] = joined
    judges = judge_records(study, folder)
    known |= judges
    folder.write_state(study, judges)
    if not tables:
        _forget_matrix(folder)
        return None
    matrix = _matrix(study, folder, tables, known)
    matrix.write(folder.path)
    return matrix


def _forget(folder: RunFolder, model: str) -> None:
    """Remove tables that an earlier version of the study wrote: some are not measured any more, or fail now."""
    named = {"drift", JUDGES}
    for marker in (folder.path / model / "parts").glob("*/*.key.json"):
        with suppress(InputError):  # damaged by a disk or a hand: it is measured again
            named.update(read_marker(marker).results)
    for name in named:
        for kind in ("json", "parquet"):
            (folder.path / model / f"{name}.{kind}").unlink(missing_ok=True)


def _forget_matrix(folder: RunFolder) -> None:
    """Remove the matrix and the report of an earlier version of the study: they tell of what is not measured today."""
    for name in ("matrix.json", "matrix.parquet", "report.html", "report.md"):
        (folder.path / name).unlink(missing_ok=True)


def _joined(folder: RunFolder, own: Mapping[StudyPart, Record]) -> dict[str, Result]:
    """Name → result over all cells whose part is done."""
    parts: dict[str, list[Result]] = {}
    steps: dict[str, str] = {}
    for part, record in own.items():
        for result in folder.results(part) if record.status is PartStatus.DONE else ():
            parts.setdefault(result.probe, []).append(result)
            steps[result.probe] = part.step
    failed = {(part.step, part.cell): record.error for part, record in own.items() if record.error}
    return {
        name: _with_failed(join_cells(results), {cell: e for (step, cell), e in failed.items() if step == steps[name]})
        for name, results in parts.items()
    }


def _with_failed(result: Result, failed: Mapping[str, str]) -> Result:
    """With a row for each cell whose part failed, where the table tells reasons."""
    if "reason" not in result.table or not failed:
        return result
    rows = pd.DataFrame([{"cell": cell, "reason": error} for cell, error in failed.items()])
    return replace(result, table=pd.concat([result.table, rows], ignore_index=True))


def _relabelled(outcomes: Result) -> pd.DataFrame:
    """The answers of all cells as today's broader lexicon labels them, whenever each of them was asked."""
    return decide(outcomes.table.drop(columns=["label", OUTCOME], errors="ignore"))


def _with_outcomes(completions: Result, outcomes: pd.DataFrame) -> Result:
    """The completions with what decides the rates of the matrix; the share that could not be scored is a warning."""
    table = with_outcomes(completions.table, outcomes)
    unscored, counted = table[table["refused"].isna()], counted_by(table)
    asked = table["cell"].value_counts()
    warnings = [
        f"{len(rows)} of {asked[cell]} answers of {cell} are unscored ({counted}) and left out of rates"
        for cell, rows in unscored.groupby("cell", sort=False)
    ]
    settings = {**completions.settings, "outcome": counted}
    return Result(completions.probe, table, settings, [*completions.warnings, *warnings], completions.seconds)


def _drift(study: Study, outcomes: pd.DataFrame) -> Result:
    result = drift.measure(outcomes, BASELINE, calibration=_calibration(study), force=True)
    return Result("drift", result.table, dict(result.settings), result.warnings)


def _judged(study: Study, outcomes: pd.DataFrame, store: Path) -> Result:
    """What judges say of the answers; verdicts are kept, so that nothing is asked twice."""
    from probes.judges import probe as judges
    from probes.judges.judge import Judge
    from probes.judges.template import read_template
    from probes.judges.verdict_store import VerdictStore

    settings = study.judges
    template = read_template(None if settings.template is None else Path(study.path(settings.template)))
    with VerdictStore(store) as verdicts:
        panel = [Judge(name, template, verdicts) for name in settings.models]
        return judges.measure(outcomes, panel, BASELINE, sample=settings.sample)


def _calibration(study: Study) -> Path | None:
    return None if study.rtsi.calibration is None else Path(study.path(study.rtsi.calibration))


UNMEASURED = {"regime": "undetermined", "action": "direct_safety_eval"}
"""What the cells of a model without any measured cell get; others get the same from `probes.matrix.regimes`."""


def _matrix(
    study: Study, folder: RunFolder, tables: Mapping[str, Mapping[str, Result]], known: Mapping[StudyPart, Record]
) -> Result:
    index = RTSI.load() if study.rtsi.calibration is None else RTSI.load(_calibration(study) or "")
    by_name = {model.name: model for model in study.models}
    rows: list[pd.DataFrame] = []
    by_model: dict[str, dict[str, pd.Series]] = {}
    settings: dict[str, Any] = {}
    warnings: list[str] = []
    for name, joined in tables.items():
        own = {part: record for part, record in known.items() if part.model == name and record.error}
        errors = [(part.cell, record.error) for part, record in own.items() if part.step != JUDGES]
        warnings += [
            f"{name}: the judges failed, so refusals are counted by the {BROADER}: {record.error}"
            for part, record in own.items()
            if part.step == JUDGES
        ]
        failed = dict(reversed(errors))  # of several errors of a cell the first
        rows.append(_model_rows(study, by_name[name], joined, index, failed))
        by_model[name] = by_cell(joined["completions"].table)
        settings[name] = _settings(joined, index)
        warnings += dict.fromkeys(f"{name}: {warning}" for result in joined.values() for warning in result.warnings)
    matrix = add_regimes(pd.concat(rows, ignore_index=True), by_model)
    lost = [
        {"model": part.model, "cell": part.cell, "reason": record.error, **UNMEASURED}
        for part, record in known.items()
        if part.step == ALWAYS and record.error and part.model not in tables
    ]
    matrix = pd.concat([matrix, pd.DataFrame(lost)], ignore_index=True) if lost else matrix
    seconds = sum(record.seconds or 0.0 for record in known.values())
    settings |= {"outcome": counted_by(matrix)} | STUDY.describe()
    return Result("matrix", matrix, settings, warnings, round(seconds, 3))


def _model_rows(
    study: Study, model: Model, joined: Mapping[str, Result], index: RTSI, failed: Mapping[str, str]
) -> pd.DataFrame:
    """One row per cell of a model, failed ones last."""
    places = located(study, model)
    measured = joined["completions"].table["cell"].drop_duplicates()
    described = describe_cells({name: open_checkpoint(places[name] or "") for name in map(str, measured)})
    return cell_rows(model.name, described, joined, index, failed)


def _settings(joined: Mapping[str, Result], index: RTSI) -> dict[str, Any]:
    """What a model's completions were made with, and what the other columns rest on."""
    quality = quality_note(joined["quality"]) if "quality" in joined else ""
    return {
        **joined["completions"].settings,
        "rtsi_calibration": index.source_,
        **({"quality": quality} if quality else {}),
        "seconds": {name: result.seconds for name, result in joined.items() if result.seconds is not None},
    }


def quality_note(quality: Result) -> str:
    """What quality is of: references, or the baseline's own answers."""
    own = not (quality.table["against"] == "reference").any()
    return QUALITY_NOTE.format("the baseline's own answers" if own else "the references", quality.settings["encoder"])
