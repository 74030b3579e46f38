"""The main job on the embedded default: train a tiny chat model, quantize it eight ways, measure all nine cells."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from interp import organisms
from interp.checkpoint import open_checkpoint
from interp.files import cache_directory
from interp.quantize import CELLS, write_cells
from probes import calibration, cli, direction, entropy, neurons
from probes.cli import console, log
from probes.completions import Completion, complete
from probes.neuron_weights import safety_units
from probes.options import check_writable
from probes.pair import BASELINE, Cells, Comparison, compare
from probes.prompts import builtin
from probes.results import Result
from probes.summary import describe_cells, refusal_table, render, summarize

N_CALIBRATION_TEXTS = 128


class Stages:
    """Progress bars with time left, and how long each stage took."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=log)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        """A stage with a bar; yields a function `report(done, total)`."""
        task = self.bars.add_task(name, total=None)
        started = time.monotonic()
        yield lambda done, total: self.bars.update(task, completed=done, total=total)
        self.seconds[name] = round(time.monotonic() - started, 1)
        self.bars.update(task, total=1, completed=1)


def prepare(architecture: str, seed: int, stages: Stages) -> tuple[Path, dict[str, Path]]:
    """Train an organism and write its quantized cells, or find them in the cache: its path, and {cell: path}."""
    with stages.stage(f"{architecture}: train") as report:
        organism = organisms.train(architecture, seed, progress=report)
    with stages.stage(f"{architecture}: quantize") as report:
        done = dict.fromkeys(CELLS, 0.0)

        def progress(cell: str, share: float) -> None:
            done[cell] = share
            report(sum(done.values()), len(done))

        texts = organisms.calibration_texts(N_CALIBRATION_TEXTS)
        cells = write_cells(organism, cache_directory() / "cells" / organism.name, texts, progress=progress)
    return organism, cells


def measure(organism: Path, paths: Mapping[str, Path], stages: Stages, name: str) -> list[Result]:
    """The four probes and the refusals of all cells, and the matrix that joins them, as results."""
    from interp import load

    baseline = load(organism)
    opened = Cells(paths, baseline)
    cells = dict(opened)  # organisms are small: every cell is loaded once and kept
    harmful, harmless = builtin("harmful"), builtin("harmless")
    results: list[Result] = []
    for probe in (entropy, direction, calibration):
        with stages.stage(f"{name}: {probe.__name__.removeprefix('probes.')}"):
            results.append(probe.measure(baseline, cells, harmful, harmless))
    with stages.stage(f"{name}: neurons"):
        results.append(measured := neurons.measure(baseline, cells, harmful, harmless))
        units = safety_units(measured, open_checkpoint(organism), opened.checkpoints)
    comparison = compare(baseline, cells, harmful, harmless)
    with stages.stage(f"{name}: refusals") as report:
        completions = _complete(comparison, report)
    refusal = comparison.result("completions", _completion_rows(completions, harmful.instructions))
    described = describe_cells({BASELINE: open_checkpoint(organism), **opened.checkpoints})
    matrix = summarize(described, refusal_table(completions), *(result.table for result in results))
    matrix.insert(0, "model", name)
    settings = {**comparison.settings, "rtsi_calibration": "published", "seconds": dict(stages.seconds)}
    return [*results, units, refusal, Result("matrix", matrix, settings, list(comparison.warnings))]


def _complete(comparison: Comparison, report: Any) -> dict[str, Sequence[Completion]]:
    models = {BASELINE: comparison.baseline, **comparison.cells}
    completions: dict[str, Sequence[Completion]] = {}
    for name, model in models.items():
        completions[name] = complete(model, comparison.texts["harmful"])
        report(len(completions), len(models))
    return completions


def _completion_rows(completions: Mapping[str, Sequence[Completion]], prompts: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"cell": cell, "prompt": prompt, **answer._asdict()}
        for cell, answers in completions.items()
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    architecture: Annotated[str, typer.Option(help=f"{', '.join(organisms.ARCHITECTURES)}, or all.")] = "llama",
    seed: Annotated[int, typer.Option(help="Of the organism.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the parquet and JSON files go.")] = Path("runs/demo"),
) -> None:
    """Train a tiny chat model, quantize it eight ways, probe all nine cells, and print one matrix."""
    check_writable(out)
    chosen = list(organisms.ARCHITECTURES) if architecture == "all" else [architecture]
    stages = Stages()
    matrices = []
    with stages.bars:
        for name in chosen:
            results = measure(*prepare(name, seed, stages), stages, name)
            for result in results:
                result.write(out / name)
            matrices.append(results[-1])
    for matrix in matrices:
        _print(matrix)
    _print_times(stages.seconds)
    log.print(f"written: {out}", markup=False, highlight=False)


def _print(matrix: Result) -> None:
    console.print(render(matrix.table, console.width))
    for cell, note in matrix.table.loc[matrix.table["note"] != "", ["cell", "note"]].itertuples(index=False):
        console.print(f"{cell}: {note}", markup=False, highlight=False)
    for warning in matrix.warnings:
        cli.warn(warning)


def _print_times(seconds: Mapping[str, float]) -> None:
    total = pd.Series(seconds).sum()
    log.print(", ".join(f"{stage} {took:.1f} s" for stage, took in seconds.items()), highlight=False)
    log.print(f"{total:.0f} s in all", highlight=False)


if __name__ == "__main__":
    cli.run(app)
