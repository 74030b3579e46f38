"""The main job on the embedded default: train a tiny chat model, quantize it eight ways, measure all nine cells."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from interp import organisms
from interp.checkpoint import open_checkpoint
from interp.files import cache_directory
from interp.quantize import CELLS, write_cells
from probes import calibration, cli, direction, entropy, neurons, quality
from probes.cli import console, log
from probes.completions import Completion, complete
from probes.neuron_weights import safety_units
from probes.options import check_writable
from probes.pair import BASELINE, Cells, Comparison, compare
from probes.prompts import PromptSet, builtin
from probes.refusal_text import is_refusal
from probes.regimes import STUDY
from probes.results import Result
from probes.rtsi import RTSI
from probes.summary import (
    add_regimes,
    describe_cells,
    over_refusal_table,
    quality_table,
    refusal_table,
    render,
    summarize,
)

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


@dataclass(frozen=True)
class Measured:
    """All that is known of one model's cells.

    Attributes:
        results: of the probes, the completions and the quality metrics.
        matrix: one row per cell, without regimes.
        refused: cell → whether it refused each harmful prompt.
        settings: of the matrix.
        warnings: to print and to record.
    """

    results: list[Result]
    matrix: pd.DataFrame
    refused: dict[str, list[bool]]
    settings: dict[str, Any]
    warnings: list[str]


def measure(organism: Path, paths: Mapping[str, Path], stages: Stages, name: str) -> Measured:
    """The four probes, behaviour and quality of all cells of one organism.

    The cells were written from this very baseline, so what their writers changed beside rounding (GPTQModel's AWQ of
    Phi) is a warning in the matrix and no reason to refuse: `force`.
    """
    from interp import load

    baseline = load(organism)
    opened = Cells(paths, baseline)
    cells = dict(opened)  # organisms are small: every cell is loaded once and kept
    harmful, harmless = builtin("harmful"), builtin("harmless")
    comparison = compare(baseline, cells, harmful, harmless, force=True)
    with stages.stage(f"{name}: refusals") as report:
        answers = {side: _complete(comparison, side, report) for side in comparison.texts}
    refused = {cell: [is_refusal(a.text) for a in given] for cell, given in answers["harmful"].items()}
    results: list[Result] = []
    with stages.stage(f"{name}: entropy"):
        results.append(entropy.measure(baseline, cells, harmful, harmless, force=True))
    with stages.stage(f"{name}: direction"):
        results.append(direction.measure(baseline, cells, harmful, harmless, force=True))
    with stages.stage(f"{name}: calibration"):
        results.append(calibration.measure(baseline, cells, harmful, harmless, refusals=refused, force=True))
    with stages.stage(f"{name}: neurons"):
        results.append(measured := neurons.measure(baseline, cells, harmful, harmless, force=True))
        units = safety_units(measured, open_checkpoint(organism), opened.checkpoints)
    with stages.stage(f"{name}: quality"):
        quality_result = quality.measure(baseline, cells, quality.organism_task(), force=True)
    described = describe_cells({BASELINE: open_checkpoint(organism), **opened.checkpoints})
    behaviour = [
        refusal_table(answers["harmful"]),
        over_refusal_table(answers["harmless"]),
        quality_table(quality_result.table),
    ]
    matrix = summarize(described, behaviour, *(result.table for result in results))
    matrix.insert(0, "model", name)
    completions = comparison.result(
        "completions", _completion_rows(answers, {"harmful": harmful, "harmless": harmless})
    )
    settings = {
        **comparison.settings,
        "rtsi_calibration": RTSI.load().source_,
        "quality": "BERTScore F1 against the references, vectors: hidden states of the baseline",
    }
    return Measured(
        [*results, units, quality_result, completions], matrix, refused, settings, list(comparison.warnings)
    )


def _complete(comparison: Comparison, side: str, report: Any) -> dict[str, Sequence[Completion]]:
    models = {BASELINE: comparison.baseline, **comparison.cells}
    completions: dict[str, Sequence[Completion]] = {}
    for name, model in models.items():
        completions[name] = complete(model, comparison.texts[side])
        report(len(completions), len(models))
    return completions


def _completion_rows(
    answers: Mapping[str, Mapping[str, Sequence[Completion]]], sides: Mapping[str, PromptSet]
) -> list[dict[str, Any]]:
    return [
        {"cell": cell, "prompts": side, "prompt": prompt, **answer._asdict(), "refused": is_refusal(answer.text)}
        for side, by_cell in answers.items()
        for cell, given in by_cell.items()
        for prompt, answer in zip(sides[side].instructions, given, strict=True)
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
    measured: dict[str, Measured] = {}
    with stages.bars:
        for name in chosen:
            measured[name] = measure(*prepare(name, seed, stages), stages, name)
            for result in measured[name].results:
                result.write(out / name)
    joined = pd.concat([m.matrix for m in measured.values()], ignore_index=True)
    matrix = add_regimes(joined, {name: m.refused for name, m in measured.items()})
    settings = {name: m.settings for name, m in measured.items()} | {"seconds": stages.seconds, **STUDY.describe()}
    warnings = [f"{name}: {warning}" for name, m in measured.items() for warning in m.warnings]
    result = Result("matrix", matrix, settings, warnings)
    parquet, document = result.write(out)
    _print(result)
    _print_times(stages.seconds)
    log.print(f"written: {parquet}, {document}, and the probes' tables beside them", markup=False, highlight=False)


def _print(result: Result) -> None:
    for _, rows in result.table.groupby("model", sort=False):
        console.print(render(rows, console.width))
        for cell, note in rows.loc[rows["note"] != "", ["cell", "note"]].itertuples(index=False):
            console.print(f"{cell}: {note}", markup=False, highlight=False)
    settings = result.settings[str(result.table["model"].iloc[0])]
    console.print(f"quality: {settings['quality']}", markup=False, highlight=False)
    console.print(f"RTSI calibration: {settings['rtsi_calibration']}", markup=False, highlight=False)
    for warning in result.warnings:
        cli.warn(warning)


def _print_times(seconds: Mapping[str, float]) -> None:
    total = pd.Series(seconds).sum()
    stages = ", ".join(f"{stage} {took:.1f} s" for stage, took in seconds.items())
    log.print(f"{total:.0f} s in all ({stages})", highlight=False)


if __name__ == "__main__":
    cli.run(app)
