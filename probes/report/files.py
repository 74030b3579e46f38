"""Write the page and the summary of a run."""

from __future__ import annotations

from pathlib import Path

from interp.errors import InputError
from interp.files import atomic_file

PAGE, SUMMARY = "report.html", "report.md"


def write(run: Path) -> tuple[Path, Path]:
    """Write a run's report into its folder: `report.html`, one page without any request to a network, and `report.md`.

    An older report is replaced only when both are complete.

    Args:
        run: the folder that `probes.demo`, `probes.study` or `probes.refusal` wrote.

    Returns:
        The paths of page and summary.

    Raises:
        InputError: no run, an unfinished, damaged or older one; or the folder cannot be written.
    """
    from probes.report import page
    from probes.report.run import read_run
    from probes.report.sections import build

    read = read_run(run)
    sections = build(read)
    texts = {run / PAGE: page.html(read, sections), run / SUMMARY: page.markdown(read, sections)}
    try:
        for path, text in texts.items():
            with atomic_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"The report cannot be written into {run}: {error.strerror or error}"
        raise InputError(problem, "a folder that can be written, with space left") from error
    return run / PAGE, run / SUMMARY
