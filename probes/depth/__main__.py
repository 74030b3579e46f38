"""The command `python -m probes.depth`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.depth.settings import POSITIONS, PREFILL
from probes.harness import tables
from probes.harness.options import Options, with_options
from probes.margin.settings import Source

if TYPE_CHECKING:
    from rich.console import Group

    from probes.depth.probe import DepthResult

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "begun as": tables.text("begun"),
    "token": tables.number("position", "d"),
    "n": tables.number("n", "d"),
    "KL (nats)": tables.interval("kl", ".4f"),
    "margin": tables.number("margin", "+.2f"),
    "shift (nats)": tables.interval("shift", "+.2f"),
}
CELL_COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "first token": tables.interval("first", "+.2f"),
    "lowest later": tables.interval("later", "+.2f"),
    "token": tables.number("position", "d"),
    "verdict": tables.text("verdict"),
}


def render(result: DepthResult) -> Group:
    """Harmful prompts, for the terminal."""
    from rich.console import Group

    rows = result.table[result.table["prompts"].isin(["harmful"]) | result.table["prompts"].isna()]
    return Group(
        tables.render("Refusing at the first tokens of an answer to harmful prompts", rows, COLUMNS),
        tables.render("Shift of the margin (nats) where a refusal has begun", result.cells.table, CELL_COLUMNS),
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    positions: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = POSITIONS,
    prefill: Annotated[str, typer.Option(metavar="TEXT", help="How an answer that complies begins.")] = PREFILL,
    openings: Annotated[Source, typer.Option(help="Whose refusal openings.")] = "baseline",
) -> None:
    """Margin and KL at the first tokens of answers that have begun as a refusal, and as an answer."""
    from probes.depth.probe import measure
    from probes.harness.options import finish

    result = measure(*options.inputs(), positions=positions, prefill=prefill, openings=openings, **options.settings())
    finish(result, render(result), options)


if __name__ == "__main__":
    cli.run(app)
