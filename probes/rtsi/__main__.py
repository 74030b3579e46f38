"""The command `python -m probes.rtsi`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from interp import cli
from probes.rtsi.settings import PUBLISHED, RATE_DELTA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    import pandas as pd

    from probes.harness import tables
    from probes.harness.results import Result
    from probes.rtsi.index import RTSI


class _ScoresPaths(TyperGroup):
    """`python -m probes.rtsi PATH` is `python -m probes.rtsi score PATH`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A path in the place of a command is scored."""
        named = args[0] in self.commands or not Path(args[0]).exists()
        return super().resolve_command(ctx, args if named else ["score", *args])


app = typer.Typer(cls=_ScoresPaths, add_completion=False, no_args_is_help=True)
TableFiles = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE…", help="Feature tables (.csv, .parquet, .json), or the folder that probes.refusal wrote."
    ),
]
Baseline = Annotated[Path | None, typer.Option(metavar="FILE", help="Completions of the baseline (.jsonl).")]
Quantized = Annotated[
    list[str] | None, typer.Option(metavar="[NAME=]FILE", help="Completions of a cell; give the option again for more.")
]
CalibrationFile = Annotated[
    Path, typer.Option(metavar="FILE", help="A frozen calibration.", show_default="the published")
]
Target = Annotated[str, typer.Option(help="The column of refusal-rate deltas.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the parquet and JSON files go.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]


@app.command()
def fit(
    files: TableFiles = None,
    baseline: Baseline = None,
    quantized: Quantized = None,
    target: Target = RATE_DELTA,
    calibration: Annotated[Path, typer.Option(metavar="FILE", help="Where the calibration goes.")] = Path("rtsi.json"),
    source: Annotated[str, typer.Option(help="Where the rows came from.", show_default="the files")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing calibration.")] = False,
) -> None:
    """Calibrate on your own inference stack: weights and bounds, frozen in a JSON file."""
    from interp.errors import InputError
    from probes.rtsi.index import DELTAS, RTSI

    if calibration.exists() and not force:
        raise InputError(f"{calibration} exists", do="Give another --calibration, or --force to replace it")
    rows, inputs, _ = _rows(files, baseline, quantized)
    index = RTSI().fit(rows, _column(rows, target), source=source or ", ".join(inputs))
    index.save(calibration)
    for name, weight, low, high in zip(DELTAS, index.weights_, index.low_, index.high_, strict=True):
        cli.console.print(f"{name:30} weight {weight:.4f}  |δ| from {low:.4f} to {high:.4f}", highlight=False)
    again = ["--baseline", "COMPLETIONS", "--quantized", "COMPLETIONS"]
    cli.ending(
        [f"{calibration} ({index.n_calibration_} rows)"],
        [["probes.rtsi", "score", *again, "--calibration", calibration]],
    )


@app.command()
def score(
    files: TableFiles = None,
    baseline: Baseline = None,
    quantized: Quantized = None,
    calibration: CalibrationFile = PUBLISHED,
    out: Out = Path("results"),
    as_json: Json = False,
    wide: cli.Wide = False,
) -> None:
    """Score and band each cell. LOW means that the screen does not escalate, never that a cell is safe."""
    import pandas as pd

    from interp.files import sha256
    from probes.harness import tables
    from probes.harness.results import Result
    from probes.rtsi.index import DELTAS, RTSI, UNIT_COLUMN

    rows, inputs, warnings = _rows(files, baseline, quantized)
    bands = _bands(RTSI.load(calibration), rows)
    table = pd.concat([rows, bands], axis=1).assign(cell=_names(rows))
    unknown = [c for c in map(str, rows) if c.endswith("_delta") and c not in (*DELTAS, RATE_DELTA)]
    warnings += [f"not in the index, ignored: {', '.join(unknown)}"] if unknown else []
    if UNIT_COLUMN not in rows:
        warnings.append(f"the rows name no {UNIT_COLUMN}: taken to be the calibration's")
    columns = {"cell": tables.text("cell"), "score": tables.number("score", ".3f"), "band": tables.text("band")}
    result = Result("rtsi", table, {"calibration_sha256": sha256(calibration), "inputs": inputs}, warnings)
    _finish(
        result,
        {"RTSI": (table, columns)},
        out,
        as_json,
        [["probes.rtsi", "route", *_again(files, baseline, quantized)]],
    )
    if (bands["band"] == "UNKNOWN").all():
        raise typer.Exit(cli.Exit.NOTHING_MEASURED)


@app.command()
def validate(
    files: TableFiles = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Also leave out each value of this column; repeatable.")
    ] = None,
    danger: Annotated[
        str, typer.Option(help="A column that marks the danger rows (true or false), where there is one.")
    ] = "",
    target: Target = RATE_DELTA,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the permutations.")] = 0,
    out: Out = Path("results"),
    as_json: Json = False,
    wide: cli.Wide = False,
) -> None:
    """Refit without each row, or each value of a column: AUC, recall of danger, simpler screens, permutation test."""
    import pandas as pd
    from sklearn.model_selection import BaseCrossValidator, LeaveOneGroupOut, LeaveOneOut

    from probes.harness import tables
    from probes.harness.results import Result
    from probes.rtsi.index import DELTAS, RTSI
    from probes.rtsi.validation import cross_validate

    rows, inputs, doubts = _rows(files, None, None)
    change = _column(rows, target)
    splitters: list[tuple[str, BaseCrossValidator, pd.Series | None]] = [("row", LeaveOneOut(), None)]
    splitters += [(name, LeaveOneGroupOut(), _group(rows, name)) for name in group or []]
    held_out = {name: cross_validate(RTSI(), rows, change, splitter, by) for name, splitter, by in splitters}
    scores = {"nothing": RTSI().fit(rows, change).score_samples(rows)} | {k: v.scores for k, v in held_out.items()}
    marked = _column(rows, danger).astype(bool) if danger else None
    table = pd.DataFrame([_validation(name, rows, values, change, marked, seed) for name, values in scores.items()])
    folds = pd.concat([fold.folds.assign(left_out=name) for name, fold in held_out.items()])
    noted = folds.loc[folds["note"] != "", ["left_out", "held_out", "note"]]
    warnings = doubts + [f"{row.left_out} {row.held_out}: {row.note}" for row in noted.itertuples()]
    settings = {"inputs": inputs, "target": target, "danger": danger, "seed": seed, "folds": folds.to_dict("records")}
    columns = {"left out": tables.text("left_out"), "AUC": tables.interval("auc", ".3f")}
    columns |= {"p": tables.number("permutation_p", ".4f"), "escalated": tables.number("n_escalated", "d")}
    columns |= {"danger recall": tables.interval("recall", ".2f")} if danger else {}
    columns |= {d.removesuffix("_delta"): tables.number(f"recall_{d}", ".2f") for d in DELTAS} if danger else {}
    held_out_table = {"RTSI held out": (table, columns)}
    result = Result("rtsi_validation", table, settings, warnings)
    _finish(result, held_out_table, out, as_json, [["probes.rtsi", "fit", *(files or [])]])


@app.command(name="route")
def route_command(
    files: TableFiles = None,
    baseline: Baseline = None,
    quantized: Quantized = None,
    calibration: CalibrationFile = PUBLISHED,
    target: Target = RATE_DELTA,
    out: Out = Path("results"),
    as_json: Json = False,
    wide: cli.Wide = False,
) -> None:
    """Send cells above a threshold to the baseline: what it costs, what it recovers, and the knee."""
    import pandas as pd

    from interp.files import sha256
    from probes.harness import tables
    from probes.harness.results import Result
    from probes.rtsi.index import RTSI
    from probes.rtsi.routing import curve, risk, route

    rows, inputs, warnings = _rows(files, baseline, quantized)
    index, change = RTSI.load(calibration), _column(rows, target)
    values = risk(_bands(index, rows))
    points = curve(values, change)
    operating = pd.DataFrame([route(values, change, threshold) for threshold in (index.high, index.moderate)])
    columns: tables.Columns = {
        "threshold": tables.number("threshold", ".3f"),
        "routed": tables.number("routed_share", ".1%"),
        "lost refusals recovered": tables.number("recovered_share", ".1%"),
    }
    settings = {"calibration_sha256": sha256(calibration), "inputs": inputs, "target": target}
    shown = {"Operating points": (operating, columns), "Knee": (points[points["knee"]], columns)}
    then = [["probes.why", "--baseline", "PATH", "--quantized", "PATH"]]
    _finish(Result("rtsi_routing", points, settings, warnings), shown, out, as_json, then)


def _rows(
    files: list[Path] | None, baseline: Path | None, quantized: list[str] | None
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """The rows to work on, from tables or from completions, the hashes of the files, and warnings."""
    from interp.errors import InputError
    from interp.files import sha256
    from probes.harness.options import cell_paths
    from probes.matrix.inputs import table_file
    from probes.rtsi.inputs import deltas_of_features, features_of_completions, read_rows

    if bool(files) == bool(baseline and quantized):
        raise InputError("No input, or two kinds of it", "feature tables, or --baseline and --quantized completions")
    if files:
        rows, warnings = read_rows(files)
        return rows, {str(file): sha256(table_file(file)) for file in files}, warnings
    assert baseline is not None
    cells = {name: Path(path) for name, path in cell_paths(quantized or []).items()}
    features = features_of_completions({"baseline": baseline, **cells})
    _check_same_prompts(features)
    deltas = deltas_of_features(features.assign(baseline="baseline"))
    return deltas, {str(file): sha256(file) for file in (baseline, *cells.values())}, []


def _again(files: list[Path] | None, baseline: Path | None, quantized: list[str] | None) -> list[object]:
    """The arguments for the same rows."""
    return [*(files or []), *(["--baseline", baseline] if baseline else [])] + [
        part for cell in quantized or [] for part in ("--quantized", cell)
    ]


def _check_same_prompts(features: pd.DataFrame) -> None:
    from interp.errors import InputError

    if features["n_total"].nunique() > 1:
        counts = dict(zip(features["quantization"], features["n_total"], strict=True))
        raise InputError(f"The files hold different numbers of completions: {counts}", "answers to the same prompts")


def _bands(index: RTSI, rows: pd.DataFrame) -> pd.DataFrame:
    """The bands look at whether the counts are zero, so that rates do where a table has no counts."""
    name = "refusal_rate" if "n_refusals" not in rows and "refusal_rate_baseline" in rows else "n_refusals"
    return index.bands(rows, rows.get(name), rows.get(f"{name}_baseline"))


def _column(rows: pd.DataFrame, name: str) -> np.ndarray:
    import numpy as np

    from interp.errors import InputError

    if name not in rows:
        raise InputError(f"The rows have no column {name}", f"one of {', '.join(map(str, rows.columns))}")
    if rows[name].isna().any():
        raise InputError(
            f"The column {name} is undefined in {int(rows[name].isna().sum())} rows", "a value in each row"
        )
    try:
        values = rows[name].to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise InputError(f"The column {name} does not hold numbers: {error}") from error
    if not (np.abs(values) <= 1).all():
        raise InputError(
            f"The column {name} goes beyond 1: {values[np.abs(values).argmax()]}", "fractions, not per cent"
        )
    return values


def _group(rows: pd.DataFrame, name: str) -> pd.Series:
    from interp.errors import InputError

    if name not in rows or rows[name].nunique() < 2:
        raise InputError(f"The rows have no column {name} with two values or more", "a column to leave values out of")
    return rows[name]


def _names(rows: pd.DataFrame) -> pd.Series:
    """What tells the rows apart; of a single row, or of equal ones, its cell."""
    known = [column for column in ("model", "quantization") if column in rows]
    named = [column for column in known if rows[column].nunique() > 1] or known[-1:]
    if not named:
        return rows.index.astype(str).to_series(index=rows.index)
    return rows[named].astype(str).agg(" ".join, axis=1)


def _validation(
    left_out: str, rows: pd.DataFrame, scores: np.ndarray, change: np.ndarray, danger: np.ndarray | None, seed: int
) -> dict[str, Any]:
    import numpy as np

    from probes.rtsi.index import DELTAS, RTSI
    from probes.rtsi.validation import material_loss
    from probes.stats.classification import auc, auc_permutation_p, matched_bucket, recall
    from probes.stats.intervals import interval_columns

    loss = material_loss(change)
    separation, escalated = auc(loss, scores, seed=seed), scores >= RTSI().moderate
    row: dict[str, Any] = {"left_out": left_out, "n_loss": int(loss.sum()), "n_escalated": int(escalated.sum())}
    row |= interval_columns("auc", separation)
    row |= {"permutation_p": auc_permutation_p(loss, scores, seed=seed)}
    if danger is not None:
        row |= interval_columns("recall", recall(danger, escalated))
        row |= {
            f"recall_{d}": matched_bucket(np.abs(rows[d].to_numpy()), danger, row["n_escalated"]).value for d in DELTAS
        }
    return row


def _finish(
    result: Result,
    shown: Mapping[str, tuple[pd.DataFrame, tables.Columns]],
    out: Path,
    as_json: bool,
    then: Iterable[Sequence[object]] = (),
) -> None:
    from rich.console import Group

    from probes.harness import tables
    from probes.harness.options import publish

    noted = {
        title: (table if "reason" in table else table.assign(cell="", reason=""), columns)
        for title, (table, columns) in shown.items()
    }
    publish(result, Group(*(tables.render(title, *table) for title, table in noted.items())), out, as_json, then=then)


if __name__ == "__main__":
    cli.run(app)
