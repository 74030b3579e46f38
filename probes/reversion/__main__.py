"""The command `python -m probes.reversion`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_options
from probes.reversion.settings import DRAWS

if TYPE_CHECKING:
    import pandas as pd

    from probes.harness.fitted_table import FittedTable
    from probes.harness.results import Result

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "of": tables.text("told"),
    "back": tables.interval("back", ".2f"),
    "random signs": tables.interval("random", ".2f"),
    "p": tables.number("p", ".3f"),
}
TITLE = "How far back to the model from before alignment (activations: after the last block)"


def render(result: Result) -> FittedTable:
    """The table: codes, weights, the activations after the last block and logits of each cell."""
    table = result.table
    last = table.loc[table["of"] == "activations", "where"].iloc[-1:].tolist()
    rows = table[table["where"].isin(["all", *last]) | table["where"].isna()]
    told = rows.fillna({"of": "", "prompts": ""}).apply(_told, axis=1)  # of a cell that could not be measured
    return tables.render(TITLE, rows.assign(told=told), COLUMNS)


def _told(row: pd.Series[Any]) -> str:
    of = "same codes" if row["of"] == "codes" else str(row["of"])
    return f"{of}, {row['prompts']}" if row["prompts"] else of


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    before: Annotated[
        str,
        typer.Option(metavar="PATH", help="The model from before alignment: a directory, a .gguf file or a hub id."),
    ],
    draws: Annotated[int, typer.Option(min=1, help="Errors with random signs; 19 for a p of 0.05.")] = DRAWS,
    seed: Annotated[int, typer.Option(min=0, help="Of the signs.")] = 0,
) -> None:
    """How far back to the model from before alignment quantization went: codes, weights, activations, logits."""
    from interp.opening import load
    from probes.harness.options import finish
    from probes.reversion.probe import measure

    baseline, cells, harmful, harmless = options.inputs()
    unaligned = load(before, like=options.baseline, dtype=baseline.hf.dtype, device=options.device)
    result = measure(baseline, cells, harmful, harmless, before=unaligned, draws=draws, seed=seed, **options.settings())
    finish(result, render(result), options)


if __name__ == "__main__":
    cli.run(app)
