"""The command `python -m probes.study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli

if TYPE_CHECKING:
    from probes.study.schema import Study


TEMPLATE = Path(__file__).with_name("data") / "study.toml"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The study file.")]
Out = Annotated[
    Path | None, typer.Option(metavar="RUN", help="The run folder.", show_default="the file's `out`, or runs/NAME")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def init(file: File = Path("study.toml")) -> None:
    """Write a commented study file to start from; never overwrites."""
    from interp.errors import InputError

    if file.exists():
        raise InputError(f"{file} exists", "a new name", "Give one, or edit this file")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    cli.ending([file], [["probes.study", "run", file]])


@app.command()
def run(
    file: File,
    out: Out = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N|auto",
            help="Measure a share of the models, and no tables (`merge` writes them); auto: of a Slurm array.",
        ),
    ] = "",
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS|auto|local", help="Let the workers of a Ray cluster measure, a model each."),
    ] = None,
    failed_only: Annotated[bool, typer.Option("--failed-only", help="Measure only what failed before.")] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="With --shard: the study was changed on purpose since other shards ran.")
    ] = False,
    wide: cli.Wide = False,
) -> None:
    """Measure what is missing or stale; several may do so in one folder, each measures other models.

    Exit codes: 0 all is measured, 2 bad input, 3 a bound is exceeded, 4 nothing could be measured or nothing says that
    a bound holds, 5 some cells failed or are left to other workers, 6 too few prompts to tell whether a bound holds,
    75 stopped by SIGTERM at once, or by SIGUSR1 after the part under way: the same command goes on.
    """
    with cli.requeueing() as stop:
        from probes.study.reader import read_study
        from probes.study.run import run_study
        from probes.study.shards import Shard
        from probes.study.terminal import show_run, show_shard

        study = read_study(file)
        path = _out(study, file, out)
        share = Shard.parse(shard) if shard else None
        with cli.resumable(lambda: any(path.glob("*/parts/*/*.key.json"))):
            study_run = run_study(
                study, path, shard=share, ray=ray, failed_only=failed_only, changed=changed, stop=stop
            )
    raise typer.Exit(show_run(study_run) if share is None else show_shard(study_run, share))


@app.command()
def merge(
    where: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="The study file, or a run folder.")],
    out: Out = None,
    wide: cli.Wide = False,
) -> None:
    """Write matrix and report from what is there, for example when all shards are over. Exit codes as of `run`."""
    from probes.study.reader import read_study
    from probes.study.run import merge_study
    from probes.study.terminal import show_run

    study = None if where.is_dir() else read_study(where)
    raise typer.Exit(show_run(merge_study(where if study is None else _out(study, where, out), study)))


@app.command()
def status(
    where: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="The study file, or a run folder.")],
    out: Out = None,
    as_json: AsJson = False,
    wide: cli.Wide = False,
) -> None:
    """What is done, stale, failed or missing, and who is at it."""
    import json

    from interp.cli import console
    from probes.harness import tables
    from probes.study.reader import read_study
    from probes.study.run import records_of, study_of
    from probes.study.state import RunFolder, as_table, other_versions
    from probes.study.terminal import WORKERS, status_summary, step_columns, wide_table
    from probes.study.workers import roster

    if where.is_dir():
        study, path = study_of(where), where
    else:
        study = read_study(where)
        path = _out(study, where, out)
    folder = RunFolder.at(path)
    records = records_of(study, folder, looking=where.is_dir())
    table, workers = as_table(records), roster(path)
    for line in other_versions(folder, records):
        cli.warn(line)
    if as_json:
        rows = {"steps": table, "workers": workers}
        parsed = {name: json.loads(rows.to_json(orient="records")) for name, rows in rows.items()}
        typer.echo(json.dumps({"run": str(path), **parsed}, indent=1))
        return
    console.print(tables.render(f"{path}: {status_summary(table)}", wide_table(table), step_columns(table)))
    for _, row in table[table["error"] != ""].iterrows():
        console.print(f"{row['model']} · {row['cell']} · {row['step']}: {row['error']}", markup=False, highlight=False)
    if len(workers):
        console.print(tables.render("Workers", workers, WORKERS))


def _out(study: Study, file: Path, out: Path | None) -> Path:
    return out or (Path(study.out) if study.out else Path("runs") / file.stem)


if __name__ == "__main__":
    cli.run(app)
