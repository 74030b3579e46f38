"""The command `python -m probes.fragility`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.fragility.settings import BITS, DRAWS, GROUP
from probes.harness import tables
from probes.harness.options import NOT_STREAMED, Options, with_options
from probes.margin.settings import Source

if TYPE_CHECKING:
    from rich.console import Group

    from probes.fragility.probe import FragilityResult


COLUMNS: tables.Columns = {
    "bits": tables.number("bits", "d"),
    "rounding": tables.text("rounding"),
    "draws": tables.number("draws", "d"),
    "shift (nats)": tables.interval("shift", "+.2f"),
    "spread": tables.number("spread", ".2f"),
    "harmless": tables.number("harmless_shift", "+.2f"),
    "expected lost": tables.interval("expected_lost", ".1f"),
    "crossed": tables.number("crossed", ".1f"),
}
NO_DIRECTION = (
    "Noise without direction: what a writer saves by calibration, or what only one format's exact grid does, "
    "cells alone show."
)


def render(result: FragilityResult) -> Group:
    """The table, and in words at which bits the model breaks."""
    from rich.console import Group
    from rich.text import Text

    table = result.table
    shown = table.assign(cell=table["bits"].astype(str))
    title = (
        f"Rounded at the steps of a format, groups of {result.settings['group']} weights; baseline: {_counts(result)}"
    )
    return Group(tables.render(title, shown, COLUMNS), Text(verdict(result)), Text(NO_DIRECTION))


def _counts(result: FragilityResult) -> str:
    row = result.table.iloc[0]
    return f"{row['n_refused']} refused, {row['n']} above the threshold"


def verdict(result: FragilityResult) -> str:
    """At how many bits stochastic rounding is expected to take more than 10 points of the refusals."""
    from probes.fragility.probe import STOCHASTIC

    rows = result.table[result.table["rounding"] == STOCHASTIC].set_index("bits").sort_index()
    known = rows[rows["reason"] == ""]
    if known.empty:
        return f"Nothing can be expected: {rows['reason'].iloc[0]}."
    broken = known[known["breaks"].astype(bool)]
    if broken.empty:
        *first, last = map(str, known.index)
        bits = f"{', '.join(first)} or {last}" if first else last
        return f"It does not break at {bits} bits: no more than 10 points are expected to be lost."
    most = broken.index.max()
    lost = broken.loc[most, "expected_lost"]
    return f"It breaks at {most} bits: {lost:.1f} refusals expected to be lost, more than 10 points."


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@partial(with_options, without={"quantized": [], "force": False, **NOT_STREAMED})
def main(
    options: Options,
    bits: Annotated[
        list[int], typer.Option(min=1, max=16, metavar="N", help="Bits to round to; give the option again for more.")
    ] = list(BITS),  # noqa: B006
    group: Annotated[
        int, typer.Option(min=-1, metavar="N", help="Weights that share a grid; -1 for whole rows.")
    ] = GROUP,
    draws: Annotated[int, typer.Option(min=1, metavar="N", help="Random roundings for each number of bits.")] = DRAWS,
    seed: Annotated[int, typer.Option(min=0, help="Of the first draw.")] = 0,
    openings: Annotated[Source, typer.Option(help="Whose refusal openings.")] = "baseline",
) -> None:
    """Refusals that a model should lose to rounding alone, and at how many bits it breaks: no cell is needed."""
    from probes.fragility.probe import measure
    from probes.harness.options import publish
    from probes.harness.pieces import keeping

    baseline, _, harmful, harmless = options.inputs()
    settings = options.settings()
    del settings["force"]
    with keeping(options.out):
        result = measure(
            baseline, harmful, harmless, bits=bits, group=group, draws=draws, seed=seed, openings=openings, **settings
        )
        quantize = [["interp.quantize", "--baseline", options.baseline, "--out", "cells"]]
        publish(result, render(result), options.out, options.as_json, then=quantize)
    if (result.table["reason"] != "").all():
        raise typer.Exit(cli.Exit.NOTHING_MEASURED)


if __name__ == "__main__":
    cli.run(app)
