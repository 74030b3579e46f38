"""What the cells of a study answer: generated while they are open, or by Inspect; the tables are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from interp.quantize.cells import content_key
from probes.harness.comparison import checked, compare
from probes.harness.names import BASELINE
from probes.harness.results import Result
from probes.labels.completions import completions_of
from probes.labels.language import unread_by
from probes.labels.refused import SIDES
from probes.refusal.engines import EngineSettings
from probes.refusal.parity import Reading, check, check_lengths
from probes.refusal.probe import build_tasks
from probes.refusal.run import BehaviourRun
from probes.refusal.settings import BATCH_SIZE, OF_SERVERS, EngineName
from probes.refusal.subjects import LocalSubject
from probes.study.schema import DIRECT, Study
from probes.study.step import StepContext, prompt_source


def completions(context: StepContext) -> list[Result]:
    """The answers of the baseline and one cell, in two tables.

    `completions`: one row per (cell, prompts, prompt), for the two prompt sets of the study, with columns cell, prompts
    ("harmful" or "harmless"), prompt, text, n_tokens, finished (else it was cut), label, refused (missing where it is
    unscored), refused_study_lexicon and outcome, who decided `refused`: the broader lexicon, until all cells are
    measured and judges are asked (`probes.study.tables`).

    `refusal`: one row per (cell, task, sample_id), for all tasks, as `probes.refusal` writes them.

    Raises:
        InputError: the cell is no quantization of the baseline; see also `ask_through_inspect`.
    """
    pair_warnings: tuple[str, ...] = ()
    if context.study.behaviour.runner == DIRECT:
        outcomes, settings = _direct(context)
    else:
        pair_warnings = checked(*context.checkpoints, context.model.forced)
        outcomes, settings = ask_through_inspect(context)
    unread, warnings = unread_by((str(cell), rows["response"]) for cell, rows in outcomes.groupby("cell", sort=False))
    warnings = [*(f"{context.cell}: {warning}" for warning in pair_warnings), *warnings]
    return [
        Result(
            "completions",
            completions_of(outcomes, {s: p.instructions for s, p in context.asked.sets.items()}),
            settings,
        ),
        Result("refusal", outcomes, settings | {"not_english": unread}, warnings),
    ]


def _direct(context: StepContext) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Ask while the models are open; the baseline's answers are those of another cell's finished part, if any.

    Where models are streamed, one whole model at a time is in memory while it answers: streamed, each token of an
    answer would take a read of all weights.
    """
    comparison = compare(
        context.baseline,
        {context.cell: context.open_cell()},
        context.asked.harmful,
        context.asked.harmless,
        template=context.asked.template,
        force=context.model.forced,
    )
    limit = context.study.behaviour.max_new_tokens
    own = context.of_baseline("refusal")
    if own.empty:
        own = comparison.of_baseline("answers", lambda: _ask(context, BASELINE), max_new_tokens=limit)
    comparison.cell(context.cell)  # an error where it says nothing
    table = pd.concat([own, _ask(context, context.cell)], ignore_index=True)
    return table, comparison.settings | {"max_new_tokens": limit, "engine": "hooked", "runner": DIRECT}


def _ask(context: StepContext, name: str) -> pd.DataFrame:
    from probes.refusal.ask import ask

    if context.streaming:
        model = context.open_whole(name)
    else:
        model = context.baseline if name == BASELINE else context.open_cell()
    size = {} if context.asked.batch_size is None else {"batch_size": context.asked.batch_size}
    parts = [
        ask(
            model,
            {},
            getattr(context.asked, side),
            task,
            template=context.asked.template,
            max_new_tokens=context.study.behaviour.max_new_tokens,
            **size,
        )
        for task, side in SIDES.items()
        if task in context.study.behaviour.tasks
    ]
    return pd.concat(parts, ignore_index=True).assign(cell=name)


KEY_DIGITS = 12


def ask_through_inspect(context: StepContext) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The answers of the baseline and a cell to every task of the study, and what determines them.

    Each checkpoint has a run folder of its own, named by its content and by what is asked: a changed one is asked anew,
    and an interrupted run goes on.

    Raises:
        InputError: the two do not read the same tokens on the same engine, or a run stopped (it can be taken up again).
    """
    tasks = _tasks(context.study)
    paths = {BASELINE: context.checkpoints[0].path, context.cell: context.checkpoints[1].path}
    subjects = {name: _subject(context, name, path, paths[BASELINE]) for name, path in paths.items()}
    readings: dict[str, Reading] = {}
    answers: list[pd.DataFrame] = []
    described: dict[str, Any] = {}
    for name, subject in subjects.items():
        run = _run(context, tasks, subject)
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
        **context.asked.template.described(),
        BASELINE: described[BASELINE]["subject"],
        "cells": {context.cell: described[context.cell]["subject"]},
    }
    return pd.concat(answers, ignore_index=True), settings


def _tasks(study: Study) -> dict[str, Any]:
    behaviour, prompts = study.behaviour, study.prompts
    files = {"truthfulness": behaviour.truthfulness, "bias": behaviour.bias}
    questions = {name: study.path(path) for name, path in files.items() if path is not None}
    harmful, harmless = (prompt_source(study, source) for source in (prompts.harmful, prompts.harmless))
    return build_tasks(behaviour.tasks, harmful, harmless, prompts.limit, questions)


def _subject(context: StepContext, name: str, path: Path, baseline: Path) -> LocalSubject:
    like = None if path == baseline else str(baseline)
    behaviour, model = context.study.behaviour, context.model
    settings = EngineSettings(
        str(path),
        EngineName(behaviour.engine),
        like,
        model.dtype,
        model.device,
        **{option: getattr(behaviour, option) for option in OF_SERVERS},
    )
    template = context.asked.template
    servers = {BASELINE: model.server, **{cell.called: cell.server for cell in model.cells}}
    batch_size = context.asked.batch_size or BATCH_SIZE
    return LocalSubject(settings, str(template.name), template.system, batch_size, servers.get(name))


def _run(context: StepContext, tasks: dict[str, Any], subject: LocalSubject) -> BehaviourRun:
    run = BehaviourRun(
        context.folder, tasks, context.study.behaviour.max_new_tokens, connections=4 * subject.batch_size
    )
    key = content_key(run=run.describe(), subject=subject.describe())[:KEY_DIGITS]
    return BehaviourRun(context.folder / "inspect" / key, tasks, run.max_new_tokens, run.connections)
