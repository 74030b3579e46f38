"""The command `python -m probes.geometry`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.geometry.settings import COMPONENTS, DRAWS, FEWEST_DRAWS
from probes.harness import tables
from probes.harness.options import Options, with_streaming

if TYPE_CHECKING:
    from rich.console import Group

    from probes.geometry.probe import GeometryResult


COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "prompts": tables.text("prompts"),
    "error": tables.number("relative_error", ".3f"),
    "inside": tables.number("share", ".3f"),
    "random": tables.number("random", ".3f"),
    "covar.": tables.number("covariance", ".3f"),
    "matched": tables.interval("matched", ".3f"),
    "p": tables.number("p_matched", ".3f"),
    "along": tables.number("along", "+.3f"),
}
ANGLE_COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "smallest": tables.number("min", ".2f"),
    "largest": tables.number("max", ".2f"),
    "between the baseline's halves": tables.number("max_halves", ".2f"),
}


def render(result: GeometryResult) -> Group:
    """The study's layer, for the terminal."""
    from rich.console import Group

    layer = result.settings["study_layer"]
    shares, angles = (
        table[table["layer"].isin([layer]) | table["layer"].isna()] for table in (result.table, result.angles.table)
    )
    by_cell = angles.groupby("cell", sort=False).agg(
        min=("degrees", "min"), max=("degrees", "max"), max_halves=("degrees_halves", "max"), reason=("reason", "first")
    )
    title = f"at layer {layer} (the files have all)"
    return Group(
        tables.render(f"Quantization error inside the refusal subspace {title}", shares, COLUMNS),
        tables.render(f"Degrees to the baseline's subspace {title}", by_cell.reset_index(), ANGLE_COLUMNS),
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_streaming
def main(
    options: Options,
    components: Annotated[int, typer.Option(min=0, help="Principal components beside the means.")] = COMPONENTS,
    draws: Annotated[int, typer.Option(min=FEWEST_DRAWS, help="Random subspaces per null.")] = DRAWS,
    seed: Annotated[int, typer.Option(min=0, help="Of the halves and the random subspaces.")] = 0,
) -> None:
    """The refusal subspace: angles to the baseline's, and the share of quantization's error inside it."""
    from probes.geometry.probe import measure
    from probes.harness.options import finish
    from probes.harness.pieces import keeping

    with keeping(options.out):
        result = measure(*options.inputs(), components=components, draws=draws, seed=seed, **options.settings())
        finish(result, render(result), options)


if __name__ == "__main__":
    cli.run(app)
