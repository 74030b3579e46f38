"""The command `python -m probes.check`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp import cli
from probes.check.settings import MAX_REFUSAL_DROP, PROMPTS
from probes.harness.options import Options, with_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.check.gate import Bounds, Verdict
    from probes.check.stored import CheckResult


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@partial(with_options, baseline="", quantized=[])
def main(
    options: Options,
    max_refusal_drop: Annotated[
        float,
        typer.Option(min=0, max=1, help="Exit 3 if more of the baseline's refusals is lost, 6 if nobody can tell."),
    ] = MAX_REFUSAL_DROP,
    max_margin_drop: Annotated[
        float | None, typer.Option(min=0, help="Nats by which the mean refusal margin may fall.", show_default="any")
    ] = None,
    max_weight_error: Annotated[
        float | None, typer.Option(min=0, help="Largest relative error of the weights.", show_default="any")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the verdicts as JUnit XML, too.")] = None,
    from_run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hold a check that is in DIR against these bounds: no model.")
    ] = None,
) -> None:
    """A copy on one screen before you publish it: pair, weights, first token, margin, 32 answers; one verdict.

    Exit codes: 0 it holds, 2 bad input (or no pair), 3 a bound is exceeded, 4 nothing could be measured, 6 too few
    prompts to tell.
    """
    from probes.check import junit as junit_file
    from probes.check.gate import Bounds, verdicts, worst

    check = _measured(options) if from_run is None else _stored(from_run, options)
    bounds = Bounds(max_refusal_drop, max_margin_drop, max_weight_error)
    cell_verdicts = verdicts(check, bounds)
    if junit is not None:
        junit_file.write(junit, cell_verdicts)
    _show(check, cell_verdicts, bounds, options)
    written = [options.out / "check.json"] if from_run is None else []
    written += [] if junit is None else [junit]
    cli.ending(written or ["nothing"])
    raise typer.Exit(worst(verdict.exit for verdict in cell_verdicts))


def _measured(options: Options) -> CheckResult:
    from dataclasses import replace

    from interp.errors import InputError
    from probes.check.probe import measure

    if not options.baseline or not options.quantized:
        raise InputError("No checkpoints are given", "--baseline PATH and --quantized PATH, or --from-run DIR")
    baseline, cells, *sets = replace(options, limit=None).inputs()
    harmful, harmless = (prompts.spread(options.limit or PROMPTS) for prompts in sets)
    check = measure(baseline, cells, harmful, harmless, **options.settings())
    check.write(options.out)
    return check


def _stored(directory: Path, options: Options) -> CheckResult:
    from interp.errors import InputError
    from probes.check.stored import read_check

    if options.baseline or options.quantized:
        raise InputError("Both checkpoints and --from-run are given", "one of them: a stored check has its cells")
    return read_check(directory)


def _show(check: CheckResult, cell_verdicts: Sequence[Verdict], bounds: Bounds, options: Options) -> None:
    import json
    from dataclasses import asdict

    from probes.check.screen import next_command, render

    if options.as_json:
        told = {
            "rows": check.records(),
            "bounds": asdict(bounds),
            "verdicts": [asdict(v) | {"exit": v.exit} for v in cell_verdicts],
        }
        typer.echo(json.dumps(check.describe() | told, indent=2))
    else:
        cli.console.print(render(check, cell_verdicts))
        following = f"next: {next_command(check, cell_verdicts, bounds)}"
        cli.console.print(following, markup=False, highlight=False, soft_wrap=True)
    for warning in check.warnings:
        cli.warn(warning)


if __name__ == "__main__":
    cli.run(app)
