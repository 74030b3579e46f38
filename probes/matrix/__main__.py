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
app = typer.Typer(add_completion=False)


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Tables of cells: .csv, .parquet or .json.")],
    quality: Annotated[str, typer.Option(help="The quality metric: its column, or that of its delta without _delta.")],
    rates: Annotated[list[str], typer.Option("--rate", help="A safety rate beside refusal_rate; repeatable.")] = [],  # noqa: B006
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the parquet and JSON files go.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    wide: cli.Wide = False,
) -> None:
    """Join tables of cells, and name each cell's regime and what to do with it."""
    from rich.console import Group
    from rich.text import Text

    from probes.harness.engine_marks import sentences
    from probes.harness.options import publish
    from probes.harness.results import Result
    from probes.harness.table_files import read_table
    from probes.labels.refused import OUTCOME, counted_by
    from probes.matrix.cells import build
    from probes.matrix.regimes import RegimeRule

    matrix = build({str(file): read_table(file) for file in files}, quality, ["refusal_rate", *rates])
    counted = counted_by(matrix) if OUTCOME in matrix else UNSAID
    settings = {"quality": quality, "rates": rates, "files": [str(file) for file in files], "outcome": counted}
    title = f"Regimes by {quality} and refusal rate, refusals counted by: {counted}"
    rendered = tables.render(title, matrix.assign(cell="", reason=""), COLUMNS)
    remarks = map(Text, sentences(matrix, matrix["model"] + " " + matrix["quantization"]))
    result = Result("matrix", matrix, settings | RegimeRule().describe())
    publish(
        result,
        Group(rendered, *remarks),
        out,
        as_json,
        then=[["probes.why", "--baseline", "PATH", "--quantized", "PATH"]],
    )


if __name__ == "__main__":
    cli.run(app)
