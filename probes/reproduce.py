"""Does it reproduce? Every published figure that the reference tables determine, recomputed and printed beside ours.

Its refusals are the study's, by definition: answers that open with one of 13 phrases (`probes.refusal_text`).

python -m probes.reproduce --out results
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from probes import cli, figures_engines, figures_probes, figures_regimes, figures_rtsi, tables
from probes.figures import Figure, Status
from probes.reference import CITATION
from probes.results import Result

SECTIONS: tuple[Callable[[], list[Figure]], ...] = (
    figures_regimes.figures,
    figures_rtsi.figures,
    figures_probes.figures,
)
COLUMNS: tables.Columns = {
    "what": tables.text("what"),
    "published": tables.text("published"),
    "ours": tables.text("ours"),
    "tolerance": tables.text("tolerance"),
    "agrees": tables.text("status"),
}
app = typer.Typer(add_completion=False)


@dataclass
class Reproduction(Result):
    """Every figure, with the engine-matched deltas, written beside it as `reproduce_engines`."""

    engines: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The engine-matched deltas."""
        return (self.engines,)


def reproduce() -> Reproduction:
    """Recompute the study's figures.

    Table: a row a figure with `section`, `what`, `published`, `ours`, `tolerance`, `status` and `note`. `status` is
    `yes` or `NO` where the tables determine the figure, `undetermined` where they do not, `contradicts` where the
    study's own figures contradict each other or its definition; `note` then says why.

    `reproduce_engines`: the AWQ and GPTQ deltas of three models against baselines of the cells' own engine family, see
    `probes.figures_engines.matched`.

    Example:
        >>> reproduce().table.query("status != 'yes'")
    """
    figures = [figure for section in SECTIONS for figure in section()]
    table = pd.DataFrame([figure.row() for figure in figures])
    return Reproduction("reproduce", table, {"source": CITATION}, engines=figures_engines.matched())


@app.command()
def main(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where tables and plots go.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
) -> None:
    """Recompute every published figure that the tables determine. Exit code 3 if one does not agree."""
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
    from probes import plots  # late: matplotlib

    written = [parquet, document, *plots.write_all(out)]
    counts = result.table["status"].value_counts()
    cli.log.print(", ".join(f"{status}: {counts.get(status, 0)}" for status in Status), highlight=False)
    cli.log.print(f"written: {', '.join(map(str, written))}", markup=False, highlight=False, soft_wrap=True)
    if np.any(result.table["status"] == Status.DISAGREES):
        raise typer.Exit(cli.Exit.BOUND_EXCEEDED)


if __name__ == "__main__":
    cli.run(app)
