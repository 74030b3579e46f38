"""What all commands share: exit codes, one-paragraph errors, the console, and how they are told to stop."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from interp.errors import InputError
from interp.files import is_full, trouble_with_disk
from interp.redaction import redact

console = Console()
"""Tables and results."""
log = Console(stderr=True)
"""Progress, warnings and errors, so that `--json` output can be piped."""

WIDEST = 1000
"""Columns of a terminal on which every table fits."""


def widen(wide: bool) -> bool:
    """Let tables be as wide as they are, from now on."""
    if wide:
        console.width = WIDEST
    return wide


Wide = Annotated[bool, typer.Option("--wide", callback=widen, help="Print all columns, however wide the terminal is.")]
"""An option of every command that prints tables."""


class Exit(IntEnum):
    """Exit codes of every command."""

    MEASURED = 0
    BUG = 1
    BAD_INPUT = 2
    BOUND_EXCEEDED = 3
    NOTHING_MEASURED = 4
    PARTLY_MEASURED = 5
    UNRESOLVED = 6
    REQUEUE = 75
    INTERRUPTED = 130
    UNREAD = 141


def warn(message: str) -> None:
    """Print a warning to standard error; callers record it in their result as well."""
    log.print(f"warning: {message}", style="yellow", markup=False, highlight=False)


def invocation(module: str, *arguments: object) -> str:
    """A command as the user calls commands: `quantscope drift …`, or `python -m probes.drift …`."""
    called = Path(sys.argv[0]).stem == "quantscope"
    program = ["quantscope", module.rpartition(".")[2]] if called else ["python", "-m", module]
    return shlex.join([*program, *map(str, arguments)])


def ending(written: Iterable[object], following: Iterable[Sequence[object]] = ()) -> None:
    """The last lines of every command, on standard error: what was written, and what to run next.

    Args:
        written: files or folders.
        following: one or two commands, each a module and its arguments.
    """
    if files := ", ".join(map(str, written)):
        log.print(f"written: {files}", markup=False, highlight=False, soft_wrap=True)
    for module, *arguments in following:
        log.print(f"next: {invocation(str(module), *arguments)}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def resumable(kept: Callable[[], bool]) -> Iterator[None]:
    """For work that goes on where it was: an interruption says so, if something is kept.

    Args:
        kept: whether it is.
    """
    try:
        yield
    except KeyboardInterrupt as interruption:
        if kept():
            interruption.add_note("what was finished is kept, run the same command to go on")
        raise


class Requeue(KeyboardInterrupt):
    """A scheduler told a job to stop; the same command goes on with it."""


@contextmanager
def requeueing() -> Iterator[Callable[[], bool]]:
    """For the jobs of a scheduler: inside, SIGTERM raises `Requeue`, and the command ends with exit code 75.

    Yields:
        Whether SIGUSR1 was sent, which asks to finish what is under way and to raise `Requeue` then.
    """
    asked = stopped = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        raise Requeue

    handlers = {signal.SIGTERM: stop} | ({signal.SIGUSR1: ask} if hasattr(signal, "SIGUSR1") else {})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield lambda: asked
    except KeyboardInterrupt as interruption:
        if not stopped and not isinstance(interruption, Requeue):  # libraries may raise another one in its place
            raise
        raise typer.Exit(Exit.REQUEUE) from interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(app: typer.Typer) -> None:
    """Run a command line: bad input is one paragraph on standard error and exit code 2, a bug keeps its traceback.

    SIGTERM and SIGHUP are treated as Ctrl-C, so that a job scheduler's `kill` leaves no temporary directories and no
    children; also where Ctrl-C itself is ignored, as in what a shell script starts with `&`.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        app()
    except InputError as error:
        _bad_input(error)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # click's 1, which is a bug's here
            _leave(Exit.UNREAD)
        if isinstance(ended.code, int) and ended.code in _STOPPED:
            log.print("; ".join([_STOPPED[ended.code], *_notes(ended)]), style="yellow", highlight=False)
            _leave(ended.code)
        _flush()
        raise
    except Exception as error:  # libraries raise kinds of their own for a full disk
        if (trouble := trouble_with_disk(error)) is None:
            raise
        _bad_input(trouble)


_STOPPED: dict[int, str] = {Exit.INTERRUPTED: "interrupted", Exit.REQUEUE: "stopped"}
"""Exit code → what is said of it; the first is what typer makes of Ctrl-C."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _bad_input(error: InputError) -> NoReturn:
    log.print(f"error: {redact(str(error))}", style="red", markup=False, highlight=False)
    if error.__cause__ is not None and is_full(error.__cause__):
        _leave(Exit.BAD_INPUT)
    sys.exit(Exit.BAD_INPUT)


def _notes(error: BaseException | None) -> list[str]:
    """What was noted on an interruption, under what typer made of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return list(getattr(error, "__notes__", []))


def _flush() -> None:
    """Standard output may be a full disk, or a pipe that nobody reads any more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails with it once more
        if not isinstance(error, BrokenPipeError) and (trouble := trouble_with_disk(error, "Standard output")):
            _bad_input(trouble)


def _leave(code: int) -> NoReturn:
    """End now.

    Another thread may be in the middle of a matrix product, and Python would wait for it, or abort; and what libraries
    write at the end (Inspect, its trace) fails with a traceback on a full disk.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue
    os._exit(code)
