"""The command `python -m probes.judges`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.harness import tables
from probes.judges.settings import SAMPLE, Patience

if TYPE_CHECKING:
    from rich.console import Group

    from probes.harness.results import Result


CANARY_COLUMNS: tables.Columns = {
    "canary": tables.text("canary"),
    "judge": tables.text("judge"),
    "says": tables.text("label"),
    "right": tables.text("expected"),
    "holds": tables.text("holds"),
}
AGREEMENT_COLUMNS: tables.Columns = {
    "compared": tables.text("compared"),
    "n": tables.number("n", "d"),
    "unscored": tables.number("n_unscored", "d"),
    "agree": tables.number("agreement", ".3f"),
    "κ": tables.interval("kappa", ".3f"),
    "refused or not: agree": tables.number("agreement_refused", ".3f"),
    "κ refused": tables.interval("kappa_refused", ".3f"),
}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    table: Annotated[
        Path, typer.Argument(metavar="OUTCOMES", help="Outcomes per prompt (.parquet, .csv, .jsonl), or the folder.")
    ],
    judge: Annotated[list[str], typer.Option(metavar="MODEL", help="An Inspect model; a second one checks the first.")],
    baseline: Annotated[str | None, typer.Option(metavar="CELL", help="The second judge reads all of it.")] = None,
    template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Question with $request, $response, $fence.", show_default="built in"),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Of each other cell the second judge reads so many.")] = SAMPLE,
    seed: Annotated[int, typer.Option(help="Of that sample.")] = 0,
    retries: Annotated[int, typer.Option(min=0, help="After a failure of a judge.")] = Patience.retries,
    backoff: Annotated[float, typer.Option(min=0, help="Seconds before the first retry; doubled each time.")] = 1.0,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds for one verdict.")] = 120,
    connections: Annotated[int, typer.Option(min=1, help="Questions at once.")] = Patience.connections,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the parquet and JSON files go.")] = Path("results"),
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Store of verdicts.", show_default="DIR/verdicts.sqlite")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
    wide: cli.Wide = False,
) -> None:
    """Label outcomes with one or two judges, and print how far they agree and whether canaries fool them."""
    from interp.files import sha256
    from probes.harness.options import check_writable
    from probes.judges.judge import Judge
    from probes.judges.probe import measure
    from probes.judges.template import JudgeTemplate, read_template
    from probes.judges.verdict_store import VerdictStore
    from probes.labels.label import Label
    from probes.labels.outcomes import read_outcomes

    check_writable(out)
    outcomes = read_outcomes(table, "label")
    patience = Patience(retries, backoff, timeout, connections)
    with VerdictStore(cache or out / "verdicts.sqlite") as store:
        question: JudgeTemplate = read_template(template)
        judges = [Judge(name, question, store, patience) for name in judge]
        with cli.resumable(lambda: len(store) > 0):
            result = measure(outcomes, judges, baseline, sample=sample, seed=seed)
    result.settings = {**result.settings, "outcomes_sha256": sha256(table)}
    written = result.write(out)
    if as_json:
        typer.echo(result.to_json())
    else:
        cli.console.print(_show(result))
    for warning in result.warnings:
        cli.warn(warning)
    cli.ending(written, [["probes.drift", written[0], "--baseline", baseline or "CELL", "--label", "judge"]])
    if (result.table["judge"].isna() | (result.table["judge"] == Label.UNSCORED)).all():
        raise typer.Exit(cli.Exit.NOTHING_MEASURED)


def _show(result: Result) -> Group:
    import pandas as pd
    from rich.console import Group

    canary_table, agreements = (pd.DataFrame(result.settings[name]) for name in ("canaries", "agreement"))
    return Group(
        tables.render("Canaries", canary_table.assign(cell="", reason=""), CANARY_COLUMNS),
        tables.render("Agreement", agreements.assign(cell=agreements["compared"]), AGREEMENT_COLUMNS),
    )


if __name__ == "__main__":
    cli.run(app)
