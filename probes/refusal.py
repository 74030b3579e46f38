"""What does a model do? Requests answered by every cell, one row per prompt, with a label of each answer.

    python -m probes.refusal --baseline llama --quantized q4=llama-Q4_K_M.gguf --out runs/llama

Interrupted, killed or cut off, the same command goes on where it was; with another --quantized it asks only that cell.
The Inspect logs are in OUT/cells. What the cells
lost against the baseline: python -m probes.drift OUT/refusal.parquet --baseline baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.weights import check_pair
from probes import cli, tables
from probes.controls import again, engine_drift, notes, self_flips
from probes.engine_marks import across_engines, marked, sentences
from probes.engines import EngineName, EngineSettings
from probes.intervals import rate_interval
from probes.labels import Label
from probes.language import unread_by
from probes.names import CONTROL, is_url, name_problem
from probes.options import Options, cell_paths, check_writable, with_options
from probes.pair import BASELINE
from probes.parity import Reading, check, check_lengths
from probes.per_prompt import per_prompt
from probes.refused import counted_by, decide, refused, refused_by_study
from probes.results import Result
from probes.run_folder import RunFolder
from probes.subjects import LocalSubject, ServerSubject, Subject
from probes.tables import interval_columns
from probes.transport import Patience

TASKS = ("refusal", "over_refusal", "jailbreak", "truthfulness", "bias")
DEFAULT_TASKS = ("refusal", "over_refusal")
MAX_NEW_TOKENS = 128
BATCH_SIZE = 32

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "task": tables.text("task"),
    "n": tables.number("n", "d"),
    "refuses": tables.interval("refusal_rate", ".3f"),
    "openings": tables.number("refusal_rate_study_lexicon", ".3f"),
    "partly": tables.number("n_partial", "d"),
    "degenerate": tables.number("n_degenerate", "d"),
    "score": tables.number("mean_score", ".3f"),
    "tokens": tables.number("mean_tokens", ".1f"),
}


def measure(
    baseline: Subject,
    cells: Mapping[str, Subject],
    run: RunFolder,
    *,
    control: Subject | None = None,
    repeat: Subject | None = None,
    warnings: Sequence[str] = (),
) -> Result:
    """Ask every cell every request, greedily, and label the answers.

    Table: one row per (cell, task, sample_id, epoch); the columns are those of `probes.inspect_run.outcomes`, and
    `across_engines`, the mark of a cell that ran on another engine than the baseline (`probes.engine_marks`). The
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
        >>> run = RunFolder(Path("runs/model"), build_tasks(["refusal"]), 128, connections=128)
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
    said = [*warnings, *read, *unread, *_withheld(table), *sentences(compared, compared["cell"])]
    return Result("refusal", table, described, said)


def _withheld(table: pd.DataFrame) -> list[str]:
    """How many answers of each cell are none of the model's, and the most frequent reason."""
    lacking = table[table["error"] != ""]
    asked = table.groupby(["cell", "task"]).size().to_dict()
    return [
        f"{cell}, {task}: {len(part)} of {asked[cell, task]} answers are not the model's and have no label, "
        f"{'most often' if part['error'].nunique() > 1 else 'all'} because {part['error'].mode().iloc[0]}"
        for (cell, task), part in lacking.groupby(["cell", "task"], sort=False)
    ]


def _readings(subjects: Mapping[str, Subject], run: RunFolder, across_engines: bool) -> dict[str, Reading]:
    """How each reads the requests, after the gate."""
    readings = {name: subject.read(run.texts()) for name, subject in subjects.items()}
    for name, reading in readings.items():
        check_lengths(name, reading, run.max_new_tokens)
        check(readings[BASELINE], reading, name, across_engines)
    return readings


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Per (cell, task): outcome (who decided), n, refusal rate with its Wilson interval, that of the study's openings,
    partial refusals, degenerate answers, mean tokens.

    Several answers to one prompt count once, see `probes.per_prompt`.

    Args:
        table: outcomes, as `measure` and `probes.asking.ask` give them, or judged ones.

    Example:
        >>> rates(ask(baseline, cells, builtin("harmful"), "refusal"))
    """
    return pd.DataFrame(
        {"cell": cell, "task": task, **_rates(part)}
        for (cell, task), part in per_prompt(decide(table)).groupby(["cell", "task"], sort=False)
    )


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
        harmful: requests that should be refused; see `probes.requests.read_set`.
        harmless: requests that should be answered.
        limit: take only the first so many of each set.
        questions: files of `truthfulness` and `bias`.

    Raises:
        InputError: no such task; a file is missing or cannot be used.
    """
    from probes import questions as question_tasks
    from probes import tasks

    makers = {
        "refusal": lambda: tasks.refusal(harmful, limit=limit),
        "over_refusal": lambda: tasks.over_refusal(harmless, limit=limit),
        "jailbreak": lambda: tasks.jailbreak(harmful, limit=limit),
        "truthfulness": lambda: question_tasks.truthfulness(_file("truthfulness", questions), limit=limit),
        "bias": lambda: question_tasks.bias(_file("bias", questions), limit=limit),
    }
    if unknown := [name for name in names if name not in makers]:
        raise InputError(f"There is no task {unknown[0]!r}", f"one of {', '.join(makers)}")
    return {name: makers[name]() for name in names}


def _file(task: str, questions: Mapping[str, str] | None) -> str:
    if task not in (questions or {}):
        raise InputError(f"The task {task} has no questions", "a file", f"Give it with --{task}")
    return (questions or {})[task]


def subject_of(
    path: str, baseline: str, engine: EngineName, options: Options, like: str | None, threads: int | None = None
) -> Subject:
    """A server where the path is a URL, else a checkpoint, which takes its tokenizer from `like` or the baseline."""
    if is_url(path):
        return ServerSubject.at(path)
    like = like or (None if path == baseline or is_url(baseline) else baseline)
    settings = EngineSettings(path, engine, like, options.dtype, options.device, threads)
    return LocalSubject(settings, options.template, options.batch_size or BATCH_SIZE)


def _check_pairs(baseline: str, cells: Mapping[str, str], force: bool) -> list[str]:
    return [
        f"{name}: {warning}"
        for name, path in cells.items()
        if not (is_url(path) or is_url(baseline))
        for warning in (*open_checkpoint(path).warnings, *check_pair(baseline, path, force=force))
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help=f"One of {', '.join(TASKS)}; give it again for more.")
    ] = None,
    truthfulness: Annotated[
        str | None, typer.Option(metavar="FILE", help="Questions: TruthfulQA.csv or its mc_task.json.")
    ] = None,
    bias: Annotated[str | None, typer.Option(metavar="FILE", help="Questions: a .jsonl file of BBQ.")] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="datasets:NAME[:SPLIT]", help="Harmful requests from a dataset by name.")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="What runs the cells that are files.")] = EngineName.HOOKED,
    baseline_engine: Annotated[
        EngineName | None, typer.Option(help="What runs the baseline.", show_default="as --engine")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Compare across engines all the same: the baseline for the cells' engine."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Take tokenizer and config from here.", show_default="the baseline"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Where an answer is cut.")] = MAX_NEW_TOKENS,
    retries: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of a request that a server does not answer.")
    ] = Patience.retries,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="For one answer of a server, its queue included.")
    ] = Patience.timeout,
    determinism: Annotated[bool, typer.Option(help="Ask the baseline twice.")] = True,
) -> None:
    """Answers of every cell to harmful, harmless and wrapped requests, labelled.

    A path may be the URL of an OpenAI-compatible server, http://HOST:PORT/v1[#MODEL].
    """
    check_writable(options.out)
    paths = cell_paths(options.quantized)
    harmful = prompts or str(options.harmful or "harmful")
    questions = {name: path for name, path in (("truthfulness", truthfulness), ("bias", bias)) if path is not None}
    tasks = build_tasks(
        task or (*DEFAULT_TASKS, *questions), harmful, str(options.harmless or "harmless"), options.limit, questions
    )
    batch_size = options.batch_size or BATCH_SIZE
    base = subject_of(options.baseline, options.baseline, baseline_engine or engine, options, like)
    patience = Patience(retries, timeout=timeout)
    run = RunFolder(options.out, tasks, max_tokens, connections=4 * batch_size, patience=patience)
    with cli.resumable(run.keeps_answers):
        result = measure(
            base,
            {name: subject_of(path, options.baseline, engine, options, like) for name, path in paths.items()},
            run,
            control=None if control is None else subject_of(control, options.baseline, engine, options, like),
            repeat=again(base) if determinism else None,
            warnings=_check_pairs(options.baseline, paths, options.force),
        )
    files = result.write(options.out)
    if options.as_json:
        typer.echo(result.to_json())
    else:
        found = rates(result.table)
        title = f"What the cells do: refusals by the {counted_by(found)}, beside the study's openings"
        cli.console.print(tables.render(title, found, COLUMNS))
        for note in notes(result.settings):
            cli.console.print(note, highlight=False)
    for warning in result.warnings:
        cli.warn(warning)
    cli.log.print(f"written: {', '.join(map(str, files))}", markup=False, highlight=False, soft_wrap=True)
    of_cells = result.table[~result.table["cell"].isin([BASELINE, CONTROL])]
    if (of_cells["label"] == Label.UNSCORED).all():
        raise typer.Exit(cli.Exit.NOTHING_MEASURED)


if __name__ == "__main__":
    cli.run(app)
