"""The command `python -m probes.labels`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    against: Annotated[list[Path], typer.Option(metavar="FILE", help="JSON lines with completions and labels.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="More of them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    wide: cli.Wide = False,
) -> None:
    """Confusion tables of both lexicons against the labels that completions carry."""
    import json

    from probes.labels.errors import classes, confusion, read_labelled, show
    from probes.labels.language import unread_by

    completions = read_labelled([*against, *(more or [])])
    errors, by_class = confusion(completions), classes(completions)
    unread, warnings = unread_by((str(source), rows["text"]) for source, rows in completions.groupby("source"))
    if as_json:
        tables = {"errors": errors, "classes": by_class}
        documents = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        typer.echo(json.dumps(documents | {"not_english": unread}, indent=2))
    else:
        cli.console.print(show(errors, by_class))
    for warning in warnings:
        cli.warn(warning)
    cli.ending([], [["probes.judges", "OUTCOMES", "--judge", "MODEL"]])


if __name__ == "__main__":
    cli.run(app)
