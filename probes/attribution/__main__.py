"""The command `python -m probes.attribution`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from interp import cli
from probes.attribution.settings import MAX_STEPS, STEPS, UNITS, Objectives
from probes.harness.options import Options, with_options
from probes.margin.settings import Source

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@partial(with_options, without={})
def main(
    options: Options,
    objective: Annotated[Objectives, typer.Option(help="What is attributed.")] = Objectives.MARGIN,
    openings: Annotated[Source, typer.Option(help="Whose refusal openings.")] = "baseline",
    steps: Annotated[int, typer.Option(min=1, help="Of the midpoint rule at first; doubled while needed.")] = STEPS,
    max_steps: Annotated[int, typer.Option(min=1, help="At most.")] = MAX_STEPS,
    categories: Annotated[bool, typer.Option("--categories", help="By category of the prompts, too.")] = False,
    units: Annotated[int, typer.Option(min=1, help="Largest neurons, rows, columns, groups to keep of each.")] = UNITS,
    group_size: Annotated[
        int | None, typer.Option(min=1, help="Weights per group.", show_default="the cell's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sign flips that check the null.")] = 0,
) -> None:
    """Which quantization error moved the refusal margin (nats): shares that add up to the measured shift."""
    from probes.attribution.probe import measure
    from probes.attribution.table import render
    from probes.harness.options import finish

    result = measure(
        *options.inputs(),
        objective=objective,
        openings=openings,
        steps=steps,
        max_steps=max_steps,
        categories=categories,
        units=units,
        group_size=group_size,
        seed=seed,
        **options.settings(),
    )
    finish(result, render(result.table), options)


if __name__ == "__main__":
    cli.run(app)
