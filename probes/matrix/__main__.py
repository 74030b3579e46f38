"""The command `python -m probes.matrix`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.harness import tables
from probes.matrix.settings import cell_name

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

    from probes.matrix.inputs import CellTables


UNSAID = "unknown, no column outcome"
"""Who counted the refusals of tables that do not say it."""


def _probabilities(row: pd.Series) -> str:
    """The regimes with a probability of one per cent or more, likeliest first."""
    import numpy as np

    from probes.matrix.regimes import REGIMES

    known = {name: row.get(f"p_{name}", np.nan) for name in REGIMES}
    likely = sorted((name for name, p in known.items() if p >= 0.01), key=lambda name: -known[name])
    return ", ".join(f"{name} {known[name]:.2f}" for name in likely) or tables.UNDEFINED


COLUMNS: tables.Columns = {
    "cell": lambda row: cell_name(row),
    "refuses": tables.interval("refusal_rate", ".2f"),
    "Δ": tables.number("refusal_rate_delta", "+.3f"),
    "Δ quality": tables.number("quality_delta", "+.3f"),
    "regime": tables.text("regime"),
    "action": tables.Phrase("action", long="action_reason", of=("model", "quantization")),
    "P(regime)": lambda row: _probabilities(row),
}
OF_ONE_MODEL: tables.Columns = {
    "cell": tables.text("quantization"),
    "action": tables.Phrase("action", long="action_reason", of=("quantization",)),
}
"""Columns that need not name the model."""
app = typer.Typer(add_completion=False)


@app.command()
def main(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="TABLE…",
            help="Tables of cells (.csv, .parquet, .json), or folders that probes.refusal wrote.",
        ),
    ],
    quality: Annotated[
        str | None,
        typer.Option(
            help="The quality metric: its column, or that of its delta without _delta.",
            show_default="of answers, what probes.quality wrote beside them",
        ),
    ] = None,
    rates: Annotated[list[str], typer.Option("--rate", help="A safety rate beside refusal_rate; repeatable.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the parquet and JSON files go.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    wide: cli.Wide = False,
) -> None:
    """Join tables of cells, and name each cell's regime and what to do with it."""
    from probes.harness.options import publish
    from probes.harness.results import Result
    from probes.labels.refused import OUTCOME, counted_by
    from probes.matrix.cells import build
    from probes.matrix.inputs import quality_column, read_cells
    from probes.matrix.regimes import RegimeRule

    cells = read_cells(files)
    quality = quality_column(cells, quality)
    matrix = build(cells.tables, quality, ["refusal_rate", *rates], refused=cells.refused)
    counted = counted_by(matrix) if OUTCOME in matrix else UNSAID
    settings = {"quality": quality, "rates": rates, "files": [str(file) for file in files], "outcome": counted}
    result = Result("matrix", matrix, settings | RegimeRule().describe(), cells.warnings)
    publish(result, _rendered(matrix, quality, counted), out, as_json, then=_following(cells, files, quality))


def _rendered(matrix: pd.DataFrame, quality: str | None, counted: str) -> Group:
    """What must be known first, the table, and what must be known of its rows."""
    from rich.console import Group
    from rich.text import Text

    from probes.harness.engine_marks import sentences
    from probes.matrix.notes import baseline_notes, remarks

    one = f"{matrix['model'].iloc[0]}: regimes" if matrix["model"].nunique() == 1 else ""
    by = f"{quality} and refusal rate" if quality else "refusal rate alone"
    title = f"{one or 'Regimes'} by {by}, refusals counted by: {counted}"
    rendered = tables.render(title, matrix.assign(cell="", reason=""), {**COLUMNS, **(OF_ONE_MODEL if one else {})})
    after = [*remarks(matrix), *sentences(matrix, matrix["model"] + " " + matrix["quantization"])]
    return Group(*(Text(f"{note}.") for note in baseline_notes(matrix)), rendered, *map(Text, after))


def _following(cells: CellTables, files: list[Path], quality: str | None) -> list[list[object]]:
    """What follows on answers: their quality where it is not known, and their report."""
    folder = next((file for file in files if file.is_dir()), None)
    if folder is None or not cells.answers:
        return [["probes.why", "--baseline", "PATH", "--quantized", "PATH"]]
    answers = cells.answers[str(folder)]
    measured = [] if quality else [["probes.quality", *answers.pair(), "--out", folder]]
    return [*measured, ["probes.report", folder]]


if __name__ == "__main__":
    cli.run(app)
