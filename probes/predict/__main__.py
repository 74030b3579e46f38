"""The command `python -m probes.predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.harness import tables

if TYPE_CHECKING:
    from rich.console import Group

    from probes.harness.results import Result


PREDICTOR: tables.Columns = {"predictor": tables.text("label"), "n": tables.number("n", "d")}
CORRELATIONS: tables.Columns = {
    "needs": tables.text("needs"),
    "Spearman": tables.interval("spearman", "+.2f"),
    "Pearson": tables.interval("pearson", "+.2f"),
    "R² left out": tables.number("r2_left_out", "+.2f"),
}


PLACES: tables.Columns = {
    "parts": tables.text("cell"),
    "true are": tables.text("truth"),
    "ranking": tables.text("ranking"),
    "slides": tables.number("n_slides", "d"),
    "AUC": tables.interval("auc", ".2f"),
}


def _label_columns(label: str) -> tables.Columns:
    return {
        "AUC": tables.interval(f"{label}_auc", ".2f"),
        "left out": tables.number(f"{label}_auc_left_out", ".2f"),
        "− RTSI": tables.interval(f"{label}_minus_rtsi", "+.2f"),
    }


def render(result: Result) -> Group:
    """Correlations, one table for each label that some cells have, and the verdict."""
    from typing import Any

    from rich.console import Group
    from rich.text import Text

    from probes.predict.cells import LABELS

    n = result.settings["n_cells"]
    shown = result.table.assign(cell=result.table["label"])
    models, counted = result.settings["n_models"], result.settings["outcome"]
    title = f"Loss of refusals in {n} cells, counted by: {counted}; 95 % intervals over {models} models"
    parts: list[Any] = [tables.render(title, shown, {**PREDICTOR, **CORRELATIONS})]
    for label, meaning in LABELS.items():
        if result.table[f"{label}_auc"].notna().any():
            positives = int(result.table[f"{label}_positives"].max())
            title = f"{meaning}: {positives} of {n} cells"
            parts.append(tables.render(title, shown.drop(columns="reason"), {**PREDICTOR, **_label_columns(label)}))
    return Group(*parts, *map(Text, result.settings["verdict"]))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders that `make demo` or a study wrote.")],
    cluster: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Models in whose names it matches the same text are resampled together."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the files go.", show_default="the first run")
    ] = None,
    localize: Annotated[
        bool, typer.Option("--localize", help="Of constrained organisms: is the place of the loss found? Opens models.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False,
    wide: cli.Wide = False,
) -> None:
    """How well each measurement predicts which cells lose refusals, beside RTSI, with models left out."""
    from probes.harness.options import check_writable, publish
    from probes.predict.cells import read_cells
    from probes.predict.probe import measure

    target = out or runs[0]
    check_writable(target)
    if localize:
        _localize(runs, target, as_json)
        return
    result = measure(read_cells(runs, cluster))
    publish(result, render(result), target, as_json, then=[["probes.report", run] for run in runs[:1]])
    if (result.table["reason"] != "").all():
        raise typer.Exit(cli.Exit.NOTHING_MEASURED)


def _localize(runs: list[Path], target: Path, as_json: bool) -> None:
    from probes.harness.options import publish
    from probes.predict import localization

    result = localization.measure(runs)
    title = f"Finding the parts that hold the alignment, in cells that lost more than {localization.LOST:.0%}"
    publish(result, tables.render(title, result.table.assign(cell=result.table["level"]), PLACES), target, as_json)


if __name__ == "__main__":
    cli.run(app)
