"""What all commands share: exit codes, one-paragraph errors, the console."""

from __future__ import annotations

import signal
import sys
from enum import IntEnum

import typer
from rich.console import Console

from interp.errors import InputError

console = Console()
"""Tables and results."""
log = Console(stderr=True)
"""Progress, warnings and errors, so that `--json` output can be piped."""


class Exit(IntEnum):
    """Exit codes of every command."""

    MEASURED = 0
    BUG = 1
    BAD_INPUT = 2
    BOUND_EXCEEDED = 3
    NOTHING_MEASURED = 4
    PARTLY_MEASURED = 5
    INTERRUPTED = 130


def warn(message: str) -> None:
    """Print a warning to standard error; callers record it in their result as well."""
    log.print(f"warning: {message}", style="yellow", markup=False, highlight=False)


def run(app: typer.Typer) -> None:
    """Run a command line: bad input is one paragraph on standard error and exit code 2, a bug keeps its traceback.

    SIGTERM is treated as Ctrl-C, so that a job scheduler's `kill` leaves no temporary directories and no children.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        app()
    except InputError as error:
        log.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(Exit.BAD_INPUT)
    except SystemExit as ended:
        if ended.code == Exit.INTERRUPTED:  # what typer makes of Ctrl-C
            log.print("interrupted; what was finished is kept, run the same command to go on", style="yellow")
        raise
