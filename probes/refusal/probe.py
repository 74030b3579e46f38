"""Ask every cell all requests of the chosen tasks, and label the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from interp.errors import InputError, did_you_mean
from probes.harness.engine_marks import across_engines, marked, sentences
from probes.harness.names import BASELINE, CONTROL, name_problem
from probes.harness.results import Result
from probes.labels.baseline import little_to_lose_by_task
from probes.labels.label import Label
from probes.labels.language import unread_by
from probes.labels.per_prompt import per_prompt
from probes.labels.refused import counted_by, decide, refused, refused_by_study
from probes.refusal.controls import engine_drift, self_flips
from probes.refusal.parity import Reading, check, check_lengths
from probes.refusal.run import BehaviourRun
from probes.refusal.subjects import Subject
from probes.stats.intervals import interval_columns, rate_interval


def measure(
    baseline: Subject,
    cells: Mapping[str, Subject],
    run: BehaviourRun,
    *,
    control: Subject | None = None,
    repeat: Subject | None = None,
    warnings: Sequence[str] = (),
) -> Result:
    """Ask every cell every request, greedily, and label the answers.

    Table: one row per (cell, task, sample_id, epoch); the columns are those of
        `probes.refusal.inspect_eval.outcomes`, and
    `across_engines`, the mark of a cell that ran on another engine than the baseline (`probes.harness.engine_marks`).
    The
    settings carry `determinism` (the baseline against itself), `engine_control` and `not_english` (how many answers of
    each cell the lexicons cannot read).

    Args:
        baseline: the unquantized model.
        cells: its quantized copies by name.
        run: the tasks, and the folder from which an interrupted run goes on.
        control: the baseline on the engine of the cells, where somebody insists on comparing across engines.
        repeat: the baseline again, under other conditions; None to leave its determinism unmeasured.
        warnings: to record.

    Raises:
        InputError: a prompt that a model cannot read; cells that cannot be compared; the folder holds another run, or
            another process writes it; a run that stopped (it can be taken up again).

    Example:
        >>> run = BehaviourRun(Path("runs/model"), build_tasks(["refusal"]), 128, connections=128)
        >>> base, cell = (LocalSubject(EngineSettings(path, like=baseline)) for path in (baseline, quantized))
        >>> measure(base, {"AWQ": cell}, run).table
    """
    for problem in filter(None, map(name_problem, cells)):
        raise InputError(f"A cell is named {problem}")
    subjects = {BASELINE: baseline, **cells, **({} if control is None else {CONTROL: control})}
    readings = _readings(subjects, run, across_engines=control is not None)
    engines = {name: reading.engine for name, reading in readings.items()}
    described = run.describe() | {"cells": {name: subject.describe() for name, subject in subjects.items()}}
    with run.lock():
        run.claim(described)
        answers = {name: run.answers(name, subject, engines[name]) for name, subject in subjects.items()}
        if repeat is not None:
            described["determinism"] = self_flips(answers[BASELINE], repeat, run, engines[BASELINE])
    if control is not None:
        described["engine_control"] = engine_drift(answers, baseline, control, readings[BASELINE].prompts)
    described["not_english"], unread = unread_by((name, table["response"]) for name, table in answers.items())
    read = dict.fromkeys(warning for reading in readings.values() for warning in reading.warnings)
    table = pd.concat(answers.values(), ignore_index=True)
    table = marked(table, across_engines(table, BASELINE))
    compared = table[table["cell"] != CONTROL]
    all_warnings = [*warnings, *read, *unread, *_withheld(table), *sentences(compared, compared["cell"])]
    return Result("refusal", table, described, all_warnings)


def _withheld(table: pd.DataFrame) -> list[str]:
    """How many answers of each cell are none of the model's, and the most frequent reason."""
    lacking = table[table["error"] != ""]
    asked = table.groupby(["cell", "task"]).size().to_dict()
    return [
        f"{cell}, {task}: {len(part)} of {asked[cell, task]} answers are not the model's and have no label, "
        f"{'most often' if part['error'].nunique() > 1 else 'all'} because {part['error'].mode().iloc[0]}"
        for (cell, task), part in lacking.groupby(["cell", "task"], sort=False)
    ]


def _readings(subjects: Mapping[str, Subject], run: BehaviourRun, across_engines: bool) -> dict[str, Reading]:
    """How each reads the requests, after the gate."""
    readings = {name: subject.read(run.texts()) for name, subject in subjects.items()}
    for name, reading in readings.items():
        check_lengths(name, reading, run.max_new_tokens)
        check(readings[BASELINE], reading, name, across_engines)
    return readings


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Per (cell, task): outcome (who decided), n, refusal rate with its Wilson interval, that of the study's openings,
    partial refusals, degenerate answers, mean tokens.

    Several answers to one prompt count once, see `probes.labels.per_prompt`.

    Args:
        table: outcomes, as `measure` and `probes.refusal.ask.ask` give them, or judged ones.

    Example:
        >>> rates(ask(baseline, cells, builtin("harmful"), "refusal"))
    """
    return pd.DataFrame(
        {"cell": cell, "task": task, **_rates(part)}
        for (cell, task), part in per_prompt(decide(table)).groupby(["cell", "task"], sort=False)
    )


def baseline_notes(cell_rates: pd.DataFrame) -> list[str]:
    """A sentence for every task of harmful requests in which the baseline refuses next to nothing itself.

    Args:
        cell_rates: of `rates`.
    """
    own = cell_rates[cell_rates["cell"] == BASELINE]
    return little_to_lose_by_task(own.assign(n_refusals=(own["refusal_rate"] * own["n"]).round(), n_total=own["n"]))


def _rates(part: pd.DataFrame) -> dict[str, Any]:
    scored = part[part["label"] != Label.UNSCORED]
    outcomes = torch.tensor(refused(scored["label"]).to_numpy(dtype=bool))
    return {
        "outcome": counted_by(part),
        "n": len(scored),
        **interval_columns("refusal_rate", rate_interval(outcomes)),
        "refusal_rate_study_lexicon": float(refused_by_study(scored["response"]).astype(float).mean()),
        "n_partial": int((scored["label"] == Label.PARTIAL_REFUSAL).sum()),
        "n_degenerate": int((scored["label"] == Label.DEGENERATE).sum()),
        "mean_score": scored["score"].mean(),
        "mean_tokens": scored["n_tokens"].mean(),
        "reason": "" if len(scored) else "no answer has a label",
    }


def build_tasks(
    names: Sequence[str],
    harmful: str = "harmful",
    harmless: str = "harmless",
    limit: int | None = None,
    questions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Inspect tasks by name.

    Args:
        names: of `TASKS`.
        harmful: requests that should be refused; see `probes.refusal.request_sets.read_set`.
        harmless: requests that should be answered.
        limit: take only the first so many of each set.
        questions: files of `truthfulness` and `bias`.

    Raises:
        InputError: no such task; a file is missing or cannot be used.
    """
    from probes.refusal import question_tasks, tasks

    makers = {
        "refusal": lambda: tasks.refusal(harmful, limit=limit),
        "over_refusal": lambda: tasks.over_refusal(harmless, limit=limit),
        "jailbreak": lambda: tasks.jailbreak(harmful, limit=limit),
        "truthfulness": lambda: question_tasks.truthfulness(_file("truthfulness", questions), limit=limit),
        "bias": lambda: question_tasks.bias(_file("bias", questions), limit=limit),
    }
    if unknown := [name for name in names if name not in makers]:
        raise InputError(
            f"There is no task {unknown[0]!r}", f"one of {', '.join(makers)}", did_you_mean(unknown[0], makers)
        )
    return {name: makers[name]() for name in names}


def _file(task: str, questions: Mapping[str, str] | None) -> str:
    if task not in (questions or {}):
        raise InputError(f"The task {task} has no questions", "a file", f"Give it with --{task}")
    return (questions or {})[task]
