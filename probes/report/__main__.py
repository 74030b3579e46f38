"""The command `python -m probes.report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a study, or one that probes.refusal wrote.")
    ],
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save every figure as SVG and PNG, too.", show_default=False)
    ] = None,
    card: Annotated[
        bool,
        typer.Option("--model-card", help="Print a paragraph on every cell for its model card; write nothing."),
    ] = False,
) -> None:
    """Write a run's report: one HTML page that works without a network, and a Markdown summary for a model card."""
    from probes.report.answers import holds_answers
    from probes.report.card import model_card
    from probes.report.figures import write_figures
    from probes.report.files import write

    if card:
        typer.echo(model_card(run), nl=False)
        return
    for path in (*write(run), *(write_figures(run, figures) if figures else ())):
        typer.echo(path)
    drift = ["probes.drift", run, "--baseline", "baseline"]
    cli.ending([], [drift if holds_answers(run) else ["probes.study", "status", run]])


if __name__ == "__main__":
    cli.run(app)
