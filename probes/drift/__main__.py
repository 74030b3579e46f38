"""The command `python -m probes.drift`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.harness import tables

if TYPE_CHECKING:
    from typing import Any


COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "task": tables.text("task"),
    "axis": tables.text("axis"),
    "category": tables.text("category"),
    "at risk": tables.number("n_at_risk", "d"),
    "flips": tables.number("n_flips", "d"),
    "Δ refusal": tables.number("refusal_rate_delta", "+.3f"),
    "McNemar p": tables.number("p_mcnemar", ".3g"),
    "detectable": tables.number("detectable", ".3f"),
    "flip rate": tables.interval("flip_rate", ".3f"),
    "Holm": tables.number("p_holm", ".3g"),
    "degenerate": tables.number("n_degenerate", "d"),
}


def _controls(table: Path) -> dict[str, Any]:
    """What `probes.refusal` measured beside its outcomes: does the baseline agree with itself, and across engines?"""
    from probes.harness.results import read_result

    document = table.with_suffix(".json")
    if table.suffix != ".parquet" or not document.exists():
        return {}
    settings = read_result(document).settings
    return {name: settings[name] for name in ("determinism", "engine_control") if name in settings}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    table: Annotated[
        Path, typer.Argument(metavar="OUTCOMES", help="Outcomes per prompt (.parquet, .csv, .jsonl), or the folder.")
    ],
    baseline: Annotated[str, typer.Option(metavar="CELL", help="The baseline's name in the column cell.")],
    cell: Annotated[
        list[str] | None, typer.Option(metavar="CELL", help="Compare this one.", show_default="all")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Which column says what a response is.", show_default="judge where there is one"
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of the RTSI score.", show_default="the study's")
    ] = None,
    max_refusal_drop: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Exit 3 if more than this share of a task's refusals is lost, 6 if nobody can tell."
        ),
    ] = None,
    max_over_refusal_rise: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit 3 if more of a task's answers turn into refusals, 6 if nobody can tell."),
    ] = None,
    by_category: Annotated[bool, typer.Option(help="Print a row for each category too.")] = True,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the parquet and JSON files go.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    wide: cli.Wide = False,
    force: Annotated[bool, typer.Option("--force", help="Compare cells of other engines or prompts.")] = False,
) -> None:
    """Refusals lost and gained by quantization, prompt by prompt."""
    from interp.files import sha256
    from probes.drift.probe import ALL, WORDING, baseline_notes, bounds_of, disagreements, exit_code, matters, measure
    from probes.harness.engine_marks import sentences
    from probes.harness.options import check_writable
    from probes.labels.outcomes import outcomes_file, read_outcomes
    from probes.refusal.controls import notes

    check_writable(out)
    table = outcomes_file(table)
    controls = _controls(table)
    result = measure(
        read_outcomes(table, label),
        baseline,
        cell,
        calibration=calibration,
        determinism=controls.get("determinism"),
        force=force,
    )
    result.settings = {**result.settings, **controls, "outcomes_sha256": sha256(table), "label": label}
    written = result.write(out)
    if as_json:
        typer.echo(result.to_json())
    else:
        shown = result.table[matters(result.table)]
        shown = shown if by_category else shown[shown["category"] == ALL]
        for note in baseline_notes(result.table):
            cli.console.print(f"{note}.", markup=False, highlight=False)
        title = f"Drift of refusals from the baseline, counted by: {result.settings['outcome']}"
        cli.console.print(tables.render(title, shown, COLUMNS))
        overall = shown[shown["category"] == ALL].drop(columns="reason")
        cli.console.print(tables.render("Wording: the same answers by the study's openings", overall, WORDING))
        for sentence in (*sentences(shown, shown["cell"]), *disagreements(shown)):
            cli.console.print(sentence, markup=False, highlight=False)
        source = result.settings["calibration"]
        for note in notes(result.settings):
            cli.console.print(note, highlight=False)
        cli.console.print(
            f"RTSI calibration: {source['path']} ({source['source']}, {source['n_rows']} rows)", markup=False
        )
    for warning in result.warnings:
        cli.warn(warning)
    judged = result.settings["label"] == "judge"
    cli.ending(written, [] if judged else [["probes.judges", table, "--judge", "MODEL", "--baseline", baseline]])
    raise typer.Exit(exit_code(result.table, bounds_of(max_refusal_drop, max_over_refusal_rise)))


if __name__ == "__main__":
    cli.run(app)
