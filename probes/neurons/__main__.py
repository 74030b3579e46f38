"""The command `python -m probes.neurons`."""

from __future__ import annotations

from typing import Annotated

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_streaming
from probes.neurons.settings import DRAWS, FEWEST_DRAWS, MOST_DRAWS, Site

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "site": tables.text("site"),
    "the effect": tables.Phrase("verdict", of=("cell", "site")),
    "ratio": tables.number("ratio", ".3f"),
    "matched": tables.number("matched_ratio", ".3f"),
    "p": tables.number("p", ".3f"),
    "normalized": tables.number("normalized_ratio", ".3f"),
    "matched ": tables.number("matched_normalized_ratio", ".3f"),
    "p ": tables.number("p_normalized", ".3f"),
}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_streaming
def main(
    options: Options,
    site: Annotated[list[Site], typer.Option(help="Which units; give the option again for more.")] = list(Site),  # noqa: B006
    draws: Annotated[
        int, typer.Option(min=FEWEST_DRAWS, max=MOST_DRAWS, help="Random matched sets per layer.")
    ] = DRAWS,
    seed: Annotated[int, typer.Option(min=0, help="Of the random sets.")] = 0,
) -> None:
    """Error on safety units against the rest: raw, normalized by scale, and against matched random units."""
    from probes.harness.options import finish
    from probes.neurons.probe import measure
    from probes.neurons.weight_errors import safety_units

    baseline, cells, *prompts = options.inputs()
    result = measure(baseline, cells, *prompts, sites=site, draws=draws, seed=seed, **options.settings())
    checkpoint = baseline.checkpoint
    units = (safety_units(result, original, cells.checkpoints) for original in (checkpoint,) if original is not None)
    averages = result.table[result.table["layer"].isna()]
    n = {side: about["n"] for side, about in result.settings["prompts"].items()}
    title = (
        f"Safety units, averaged over layers: chosen by {n['harmful']} harmful and {n['harmless']} harmless prompts, "
        f"errors of {len(result.settings['error_prompts'])}"
    )
    finish(result, tables.render(title, averages, COLUMNS), options, units)


if __name__ == "__main__":
    cli.run(app)
