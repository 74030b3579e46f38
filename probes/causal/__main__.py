"""The command `python -m probes.causal`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.attribution.settings import PartKind
from probes.causal.settings import DRAWS, KINDS, PROMPTS, By, Experiment
from probes.harness import tables
from probes.harness.options import Options, with_options
from probes.margin.settings import Source

if TYPE_CHECKING:
    from rich.console import Group

    from probes.causal.probe import CausalResult


HEADLINES: tables.Columns = {
    "cell": tables.text("cell"),
    "n": tables.number("n_prompts", "d"),
    "baseline (nats)": tables.number("margin_baseline", "+.3f"),
    "cell (nats)": tables.number("margin_cell", "+.3f"),
    "shift": tables.interval("shift", "+.3f"),
}
EFFECT: tables.Columns = {
    "gain (nats)": tables.interval("gain", "+.3f"),
    "random": tables.number("random_gain", "+.3f"),
    "p": tables.number("p", ".3f"),
    "share": tables.number("share", "+.2f"),
    "refusals": tables.number("refusal_rate", ".2f"),
    "random ": tables.number("random_refusal_rate", ".2f"),
}
"""What an exchange or an addition does, beside random ones."""
CURVES: tables.Columns = {
    "cell": tables.text("cell"),
    "parts": lambda row: row["kind"] if row["by"] == "weights" else f"{row['kind']}, by activations",
    "chosen by": tables.text("ranking"),
    "k": tables.number("k", "d"),
    **EFFECT,
}
RESCUES: tables.Columns = {
    "cell": tables.text("cell"),
    "layer": tables.number("layer", "d"),
    "along": tables.text("vector"),
    "scale": tables.number("scale", "g"),
    "prompts": tables.text("prompts"),
    **EFFECT,
    "baseline": tables.number("refusal_goal", ".2f"),
}
PATCHES: tables.Columns = {
    "cell": tables.text("cell"),
    "layer": tables.number("layer", "d"),
    "site": tables.text("site"),
    "tokens": tables.text("positions"),
    "gain (nats)": tables.interval("gain", "+.3f"),
    "shuffled": tables.number("shuffled_gain", "+.3f"),
    "share": tables.interval("share", "+.2f"),
    "distance": tables.number("distance", ".3f"),
    "shuffled ": tables.number("shuffled_distance", ".3f"),
}


def render(result: CausalResult) -> Group:
    """All tables for the terminal; of the curves the points that have a control."""
    from rich.console import Group
    from rich.text import Text

    shown = {r.probe: r.table for r in result.experiments}
    rendered = [tables.render("Refusal margin on harmful prompts", result.table, HEADLINES)]
    if "causal_restore" in shown:
        curves = shown["causal_restore"]
        for aim, title in (("restore", "Restored to the baseline's"), ("damage", "Damaged in the baseline")):
            rows = curves[(curves["aim"] == aim) & ((curves["draws"] > 0) | (curves["kind"] == "everything"))]
            if len(rows):
                rendered.append(tables.render(title, rows, CURVES))
    if "causal_rescue" in shown:
        rendered.append(tables.render("Added along the refusal direction", shown["causal_rescue"], RESCUES))
    if "causal_patch" in shown:
        sites = shown["causal_patch"]
        later = sites[
            (sites["site"] != "hook_resid_pre") | (sites["reason"] != "")
        ]  # a block's input is the last output
        rendered.append(tables.render("The baseline's activations put in", later, PATCHES))
    return Group(*rendered, Text(f"Refusals are counted by: {result.settings['outcome']}."))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    experiment: Annotated[list[Experiment], typer.Option(help="Give the option again for more.")] = [Experiment.ALL],  # noqa: B006
    attribution: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="attribution.parquet of these cells.", show_default="computed"),
    ] = None,
    by: Annotated[list[By], typer.Option(help="What is exchanged.")] = [By.WEIGHTS],  # noqa: B006
    kind: Annotated[list[PartKind], typer.Option(help="Of parts.")] = [*KINDS],  # noqa: B006
    prompts: Annotated[int, typer.Option(min=2, help="Of each side, to measure on; rankings use the rest.")] = PROMPTS,
    draws: Annotated[int, typer.Option(min=1, help="Random sets at every k with a control.")] = DRAWS,
    every_control: Annotated[bool, typer.Option("--every-control", help="Random sets at every k.")] = False,
    refusals: Annotated[bool, typer.Option(help="Generate answers along the curves.")] = True,
    refusal_draws: Annotated[int, typer.Option(min=0, help="Random sets that answers are generated for.")] = 2,
    openings: Annotated[Source, typer.Option(help="Whose refusal openings.")] = "baseline",
    seed: Annotated[int, typer.Option(min=0, help="Of the random sets.")] = 0,
) -> None:
    """Restore and damage the parts blamed for lost refusals, rescue the direction, patch activations."""
    from probes.causal.probe import measure
    from probes.causal.restoration import Plan
    from probes.harness.options import finish
    from probes.harness.pieces import keeping
    from probes.harness.table_files import read_table

    plan = Plan(
        by=by, kinds=kind, draws=draws, refusals=refusals, refusal_draws=refusal_draws, every_control=every_control,
        seed=seed,
    )  # fmt: skip
    table = None if attribution is None else read_table(attribution)
    with keeping(options.out):
        result = measure(
            *options.inputs(), experiments=experiment, attribution=table, plan=plan, prompts=prompts, openings=openings,
            **options.settings(),
        )  # fmt: skip
        finish(result, render(result), options)


if __name__ == "__main__":
    cli.run(app)
