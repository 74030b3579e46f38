"""One page and one summary of a run: what happened to refusals, why, and how it was measured.

python -m probes.report runs/demo
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.errors import InputError
from interp.files import atomic_file
from probes import cli

PAGE, SUMMARY = "report.html", "report.md"


def write(run: Path) -> tuple[Path, Path]:
    """Write a run's report into its folder: `report.html`, one page without any request to a network, and `report.md`.

    An older report is replaced only when both are complete.

    Args:
        run: the folder that `probes.demo` or `probes.study` wrote.

    Returns:
        The paths of page and summary.

    Raises:
        InputError: no run, an unfinished, damaged or older one; or the folder cannot be written.
    """
    from probes.reporting import page
    from probes.reporting.run import read_run
    from probes.reporting.sections import build

    read = read_run(run)
    sections = build(read)
    texts = {run / PAGE: page.html(read, sections), run / SUMMARY: page.markdown(read, sections)}
    try:
        for path, text in texts.items():
            with atomic_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        found = f"The report cannot be written into {run}: {error.strerror or error}"
        raise InputError(found, "a folder that can be written, with space left") from error
    return run / PAGE, run / SUMMARY


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, for example runs/demo.")],
) -> None:
    """Write a run's report: one HTML page that works without a network, and a Markdown summary for a model card."""
    for path in write(run):
        typer.echo(path)


if __name__ == "__main__":
    cli.run(app)
