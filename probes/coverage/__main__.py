"""The command `python -m probes.coverage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_options

if TYPE_CHECKING:
    from rich.console import Group

    from probes.harness.results import Result

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "on calibration": tables.number("error_calibration", ".3f"),
    "on harmful": tables.number("error_harmful", ".3f"),
    "ratio": tables.interval("ratio", ".2f"),
    "random signs": tables.number("random", ".2f"),
    "rounded": tables.number("rounded", ".2f"),
    "beyond random": tables.interval("beyond", ".2f"),
    "the same, harmless": tables.interval("harmless", ".2f"),
}
MEANING = "Beyond random above 1, and above that of harmless prompts: the calibration does not cover harmful prompts."


def render(result: Result) -> Group:
    """The means over linears, for the terminal."""
    from rich.console import Group
    from rich.text import Text

    rows = result.table[result.table["linear"].isin(["all"]) | result.table["linear"].isna()]
    return Group(tables.render("Relative output error of linears (the files have each)", rows, COLUMNS), Text(MEANING))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts the writer had.", show_default="as interp.quantize"),
    ] = None,
) -> None:
    """Whether the calibration covers harmful prompts: errors of linears where answers begin, over those on it."""
    from interp.quantize.calibration import calibration_of, read_calibration
    from probes.coverage.probe import measure
    from probes.harness.options import finish

    texts: Sequence[str] = [] if calibration is None else read_calibration(calibration)
    inputs = baseline, *_ = options.inputs()
    assert baseline.checkpoint is not None
    texts = texts or calibration_of(baseline.checkpoint.path, tokenizer=baseline.tokenizer)
    result = measure(*inputs, calibration=texts, **options.settings())
    finish(result, render(result), options)


if __name__ == "__main__":
    cli.run(app)
