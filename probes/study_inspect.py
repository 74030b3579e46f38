"""The Inspect runner inside a study: a cell's answers with logs that Inspect resumes, in RUN/MODEL/inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from interp.cells import content_key
from probes.engines import EngineName, EngineSettings
from probes.pair import BASELINE
from probes.parity import Reading, check, check_lengths
from probes.refusal import BATCH_SIZE, build_tasks
from probes.run_folder import RunFolder
from probes.study_file import Study
from probes.study_steps import Bench, prompt_source
from probes.subjects import LocalSubject

KEY_DIGITS = 12


def ask_through_inspect(bench: Bench) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The answers of the baseline and a cell to every task of the study, and what determines them.

    Each checkpoint has a run folder of its own, named by its content and by what is asked: a changed one is asked anew,
    and an interrupted run goes on.

    Raises:
        InputError: the two do not read the same tokens on the same engine, or a run stopped (it can be taken up again).
    """
    tasks = _tasks(bench.study)
    paths = {BASELINE: bench.checkpoints[0].path, bench.cell: bench.checkpoints[1].path}
    subjects = {name: _subject(bench, path, paths[BASELINE]) for name, path in paths.items()}
    readings: dict[str, Reading] = {}
    answers: list[pd.DataFrame] = []
    described: dict[str, Any] = {}
    for name, subject in subjects.items():
        run = _run(bench, tasks, subject)
        readings[name] = subject.read(run.texts())
        check_lengths(name, readings[name], run.max_new_tokens)
        check(readings[BASELINE], readings[name], name)
        about = run.describe() | {"subject": subject.describe()}
        run.claim(about)
        answers.append(run.answers(name, subject, readings[name].engine))
        described[name] = about
    settings = {
        **described[BASELINE],
        "subject": None,
        "runner": "inspect",
        "template": bench.asked.template,
        BASELINE: described[BASELINE]["subject"],
        "cells": {bench.cell: described[bench.cell]["subject"]},
    }
    return pd.concat(answers, ignore_index=True), settings


def _tasks(study: Study) -> dict[str, Any]:
    behaviour, prompts = study.behaviour, study.prompts
    files = {"truthfulness": behaviour.truthfulness, "bias": behaviour.bias}
    questions = {name: study.path(path) for name, path in files.items() if path is not None}
    harmful, harmless = (prompt_source(study, given) for given in (prompts.harmful, prompts.harmless))
    return build_tasks(behaviour.tasks, harmful, harmless, prompts.limit, questions)


def _subject(bench: Bench, path: Path, baseline: Path) -> LocalSubject:
    like = None if path == baseline else str(baseline)
    engine = EngineName(bench.study.behaviour.engine)
    settings = EngineSettings(str(path), engine, like, bench.model.dtype, bench.model.device)
    return LocalSubject(settings, bench.asked.template, bench.asked.batch_size or BATCH_SIZE)


def _run(bench: Bench, tasks: dict[str, Any], subject: LocalSubject) -> RunFolder:
    run = RunFolder(bench.folder, tasks, bench.study.behaviour.max_new_tokens, connections=4 * subject.batch_size)
    key = content_key(run=run.describe(), subject=subject.describe())[:KEY_DIGITS]
    return RunFolder(bench.folder / "inspect" / key, tasks, run.max_new_tokens, run.connections)
