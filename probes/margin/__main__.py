"""The command `python -m probes.margin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_streaming
from probes.margin.settings import Source

if TYPE_CHECKING:
    from rich.console import Group

    from probes.margin.probe import MarginResult


COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "prompts": tables.text("prompts"),
    "n": tables.number("n", "d"),
    "margin (nats)": tables.interval("margin", "+.2f"),
    "shift (nats)": tables.interval("shift", "+.2f"),
    "to answer %": tables.percent_interval("to_answer"),
    "to refusal %": tables.percent_interval("to_refusal"),
}
SEPARATION_COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "d′": tables.interval("d_prime", ".2f"),
    "shift": tables.interval("d_prime_shift", "+.2f"),
    "by means": tables.number("shift_by_means", "+.2f"),
    "by spread": tables.number("shift_by_spread", "+.2f"),
}
LOSS_COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "fitted on": tables.text("fitted_on"),
    "n": tables.number("n", "d"),
    "μ (nats)": tables.number("shift", "+.2f"),
    "σ (nats)": tables.number("spread", ".2f"),
    "expected lost": tables.interval("expected_lost", ".1f"),
    "lost": tables.number("lost", "d"),
    "ECE": tables.number("calibration_error", ".3f"),
}
OTHER_WORDS = "A cell that refuses in other words than these openings counts as answering: completions tell."


def render(result: MarginResult) -> Group:
    """The rows over all prompts, and the separation, for the terminal."""
    from rich.console import Group
    from rich.text import Text

    from probes.margin.probe import ALL

    rows = result.table[result.table["category"].isin([ALL]) | (result.table["reason"] != "")]
    return Group(
        tables.render("Refusal margin", rows, COLUMNS),
        tables.render("Separation of harmful from harmless", result.separation.table, SEPARATION_COLUMNS),
        tables.render(_losses_title(result), result.losses.table, LOSS_COLUMNS),
        Text(OTHER_WORDS),
    )


def _losses_title(result: MarginResult) -> str:
    """The title of expected losses: which prompts they are of, and what tells that they were lost."""
    from probes.harness.names import BASELINE

    rows = result.losses.table[result.losses.table["cell"] != BASELINE].dropna(subset="n_refused")
    if rows.empty:
        return "Refusals expected to be lost"
    row = rows.iloc[0]
    return (
        f"Refusals expected to be lost, of {row['n_refused']:d} with margins above {row['threshold']:+.2f} nats; "
        f"lost: by {row['observed_by']}"
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_streaming
def main(
    options: Options,
    openings: Annotated[Source, typer.Option(help="Whose refusal openings.")] = "baseline",
    answers: Annotated[
        bool, typer.Option("--answers", help="Generate the cells' answers, too: do they lose what their margins say?")
    ] = False,
) -> None:
    """Log-odds (nats) of starting a refusal, their shift from the baseline, and d′ of harmful against harmless."""
    from probes.harness.options import finish
    from probes.margin.probe import measure

    result = measure(*options.inputs(), openings=openings, answers=answers, **options.settings())
    finish(result, render(result), options)


if __name__ == "__main__":
    cli.run(app)
