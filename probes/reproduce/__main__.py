"""The command `python -m probes.reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from probes.harness import tables

COLUMNS: tables.Columns = {
    "what": tables.text("what"),
    "published": tables.text("published"),
    "ours": tables.text("ours"),
    "tolerance": tables.text("tolerance"),
    "agrees": tables.text("status"),
}
app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where tables and plots go.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    wide: cli.Wide = False,
) -> None:
    """Recompute every published figure that the tables determine. Exit code 3 if one does not agree."""
    import numpy as np

    from probes.reproduce import figures_engines
    from probes.reproduce.figures import FigureStatus
    from probes.reproduce.recompute import reproduce

    result = reproduce()
    parquet, document = result.write(out)
    if as_json:
        typer.echo(result.to_json())
    else:
        for section, rows in result.table.groupby("section", sort=False):
            cli.console.print(tables.render(str(section), rows.assign(cell=rows["what"], reason=rows["note"]), COLUMNS))
        cli.console.print(tables.render(figures_engines.TITLE, *figures_engines.shown(result.engines.table)))
        for caveat in figures_engines.CAVEATS:
            cli.console.print(caveat, markup=False, highlight=False)
    from probes.reproduce import plots  # late: matplotlib

    written = [parquet, document, *plots.write_all(out)]
    counts = result.table["status"].value_counts()
    cli.log.print(", ".join(f"{status}: {counts.get(status, 0)}" for status in FigureStatus), highlight=False)
    cli.ending(written, [["probes.rtsi", "score", "--baseline", "COMPLETIONS", "--quantized", "COMPLETIONS"]])
    if np.any(result.table["status"] == FigureStatus.DISAGREES):
        raise typer.Exit(cli.Exit.BOUND_EXCEEDED)


if __name__ == "__main__":
    cli.run(app)
