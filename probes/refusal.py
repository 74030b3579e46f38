"""What does a model do? Harmful, harmless and wrapped requests answered by every cell, one row per prompt.

    python -m probes.refusal --baseline llama --quantized q4=llama-Q4_K_M.gguf --out runs/refusal

Interrupted, killed or cut off, the same command goes on where it was. The Inspect logs are in OUT/cells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.files import atomic_file
from interp.weights import check_pair
from probes import cli, tables
from probes.engines import EngineName, EngineSettings
from probes.intervals import rate_interval
from probes.options import Options, cell_paths, check_writable, with_options
from probes.pair import BASELINE
from probes.parity import Reading, check, check_lengths, read
from probes.results import Result
from probes.tables import interval_columns

TASKS = ("refusal", "over_refusal", "jailbreak")
DEFAULT_TASKS = ("refusal", "over_refusal")
MAX_NEW_TOKENS = 128
BATCH_SIZE = 32

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "task": tables.text("task"),
    "n": tables.number("n", "d"),
    "refuses": tables.interval("refusal_rate", ".3f"),
    "partly": tables.number("n_partial", "d"),
    "degenerate": tables.number("n_degenerate", "d"),
    "tokens": tables.number("mean_tokens", ".1f"),
}


def measure(
    baseline: str,
    cells: Mapping[str, str],
    out: Path,
    *,
    tasks: Sequence[str] = DEFAULT_TASKS,
    harmful: str = "harmful",
    harmless: str = "harmless",
    limit: int | None = None,
    template: str = "auto",
    engine: EngineName = EngineName.HOOKED,
    like: str | None = None,
    force: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    dtype: str | None = None,
    device: str | None = None,
) -> Result:
    """Ask every cell every request, greedily, and label the answers.

    Table: one row per (cell, task, sample_id, epoch); the columns are those of `probes.inspect_run.outcomes`.

    Args:
        baseline: path of the unquantized checkpoint.
        cells: paths of quantized copies by name.
        out: the run folder: holds the Inspect logs of every cell, from which an interrupted run goes on.
        tasks: of `TASKS`.
        harmful: requests that should be refused; see `probes.requests.read_set`.
        harmless: requests that should be answered.
        limit: take only the first so many of each set.
        template: "auto", "none" (raw text) or a Jinja file, used for all cells.
        engine: what runs all cells.
        like: the checkpoint whose tokenizer all cells use; default the baseline.
        force: run cells that are no quantizations of this baseline.
        max_new_tokens: where an answer is cut.
        batch_size: prompts per forward pass.
        dtype: of the hooked models.
        device: of the hooked models.

    Raises:
        InputError: prompts or checkpoints that cannot be used; cells that cannot be compared; `out` holds another run;
            a run that stopped (it can be taken up again).
    """
    settings = {
        name: EngineSettings(
            path, engine, like=like or (None if name == BASELINE else baseline), dtype=dtype, device=device
        )
        for name, path in {BASELINE: baseline, **cells}.items()
    }
    built = _tasks(tasks, harmful, harmless, limit)
    warnings = _check_pairs(baseline, cells, force)
    warnings += _check_readings(settings, built, template, max_new_tokens)
    described = {
        "tasks": {name: {"n": len(task.dataset), "sha256": _dataset_sha256(task)} for name, task in built.items()},
        "template": template,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "decoding": "greedy",
        "cells": {name: _describe(cell) for name, cell in settings.items()},
    }
    _claim(out, described)
    rows = [
        _run(name, cell, list(built.values()), out, template, max_new_tokens, batch_size)
        for name, cell in settings.items()
    ]
    return Result("refusal", pd.concat(rows, ignore_index=True), described, warnings)


def _tasks(names: Sequence[str], harmful: str, harmless: str, limit: int | None) -> dict[str, Any]:
    from probes import tasks

    makers = {
        "refusal": lambda: tasks.refusal(harmful, limit=limit),
        "over_refusal": lambda: tasks.over_refusal(harmless, limit=limit),
        "jailbreak": lambda: tasks.jailbreak(harmful, limit=limit),
    }
    for name in names:
        if name not in makers:
            raise InputError(f"There is no task {name!r}", f"one of {', '.join(makers)}")
    return {name: makers[name]() for name in names}


def _dataset_sha256(task: Any) -> str:
    import hashlib

    content = json.dumps([[sample.id, sample.input, sample.target] for sample in task.dataset])
    return hashlib.sha256(content.encode()).hexdigest()


def _check_pairs(baseline: str, cells: Mapping[str, str], force: bool) -> list[str]:
    return [
        f"{name}: {warning}"
        for name, path in cells.items()
        for warning in (*open_checkpoint(path).warnings, *check_pair(baseline, path, force=force))
    ]


def _check_readings(
    settings: Mapping[str, EngineSettings], built: Mapping[str, Any], template: str, max_new_tokens: int
) -> list[str]:
    texts = [str(sample.input) for task in built.values() for sample in task.dataset]
    readings: dict[str, Reading] = {}
    for name, cell in settings.items():
        readings[name] = read(cell, texts, template)
        check_lengths(name, readings[name], max_new_tokens)
        check(readings[BASELINE], readings[name], name)
    return readings[BASELINE].warnings


def _describe(cell: EngineSettings) -> dict[str, Any]:
    checkpoint = open_checkpoint(cell.path)
    return asdict(cell) | {"sha256": checkpoint.fingerprint(), "format": checkpoint.format}


def _claim(out: Path, described: dict[str, Any]) -> None:
    """Make the folder this run's, or find that it is already.

    Raises:
        InputError: it holds another run, with what differs.
    """
    file = out / "run.json"
    if file.exists():
        before = json.loads(file.read_text())
        if differing := [key for key in described if before.get(key) != json.loads(json.dumps(described[key]))]:
            raise InputError(
                f"{out} holds a run with other settings ({', '.join(differing)} differ, see {file})",
                "the same command, which goes on, or a new folder",
                "Give another one with --out",
            )
        return
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(described, indent=2))


def _run(
    name: str,
    cell: EngineSettings,
    built: Sequence[Any],
    out: Path,
    template: str,
    max_new_tokens: int,
    batch_size: int,
) -> pd.DataFrame:
    from inspect_ai.model import get_model

    from probes.inspect_run import outcomes, run_cell

    model = get_model(
        f"quantscope/{cell.path}",
        memoize=False,
        engine=str(cell.engine),
        like=cell.like,
        template=template,
        batch_size=batch_size,
        dtype=cell.dtype,
        device=cell.device,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=cli.log, transient=True, disable=not cli.log.is_terminal) as bars:
        bar = bars.add_task(name, total=sum(len(task.dataset) for task in built))
        logs = run_cell(
            built,
            model,
            out / "cells" / name,
            max_new_tokens=max_new_tokens,
            max_connections=4 * batch_size,
            finished=lambda: bars.advance(bar),
        )
    model.api.close()
    return pd.concat([outcomes(name, log) for log in logs], ignore_index=True)


def rates(table: pd.DataFrame) -> pd.DataFrame:
    """Per (cell, task): n, refusal rate with its Wilson interval, partial refusals, degenerate answers, mean tokens."""
    import torch

    from probes.labels import REFUSED, Label

    rows = []
    for (cell, task), part in table.groupby(["cell", "task"], sort=False):
        scored = part[part["label"] != Label.UNSCORED]
        rate = rate_interval(torch.tensor(scored["label"].isin(list(REFUSED)).to_numpy()))
        rows.append(
            {
                "cell": cell,
                "task": task,
                "n": len(scored),
                **interval_columns("refusal_rate", rate),
                "n_partial": int((scored["label"] == Label.PARTIAL_REFUSAL).sum()),
                "n_degenerate": int((scored["label"] == Label.DEGENERATE).sum()),
                "mean_tokens": scored["n_tokens"].mean(),
            }
        )
    return pd.DataFrame(rows)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help=f"One of {', '.join(TASKS)}; give it again for more.")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="What runs all cells.")] = EngineName.HOOKED,
    like: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Take tokenizer and config from here.", show_default="the baseline"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Where an answer is cut.")] = MAX_NEW_TOKENS,
) -> None:
    """Answers of every cell to harmful, harmless and wrapped requests, labelled."""
    check_writable(options.out)
    result = measure(
        options.baseline,
        cell_paths(options.quantized),
        options.out,
        tasks=task or DEFAULT_TASKS,
        harmful=str(options.harmful or "harmful"),
        harmless=str(options.harmless or "harmless"),
        limit=options.limit,
        template=options.template,
        engine=engine,
        like=like,
        force=options.force,
        max_new_tokens=max_tokens,
        batch_size=options.batch_size or BATCH_SIZE,
        dtype=options.dtype,
        device=options.device,
    )
    parquet, document = result.write(options.out)
    if options.as_json:
        typer.echo(result.to_json())
    else:
        cli.console.print(tables.render("What the cells do", rates(result.table), COLUMNS))
    for warning in result.warnings:
        cli.warn(warning)
    cli.log.print(f"written: {parquet}, {document}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(app)
