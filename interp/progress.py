"""Progress where it is seen: a bar on a terminal, one line that goes away in a notebook, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from types import TracebackType
from typing import TypeVar

from rich import progress

from interp.cli import log

Item = TypeVar("Item")
Number = int | float
EVERY = 30.0
"""Seconds between two lines of a stage where there is no terminal; shorter stages of a probe say nothing."""
SHORTEST = 1.0
"""Seconds; shorter ones of several named stages say nothing, either: what they would do was done before."""


def duration(seconds: Number) -> str:
    """Seconds as people say them: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02} min" if hours else f"{minutes} min {rest:02} s"


class Lines:
    """A stage of work in a file or a pipe: a line every half a minute says what is done, since when, and what is left.

    The lines come also while nothing is finished, from a thread of their own. A stage that said something, or that
    always does, says at its end how long it took.

    Args:
        description: of the work; may be changed on the way.
        total: number of items, or None where the share is told.
        done: items done before.
        always: the end is told also where the stage was over before its first line.
        clock: seconds that pass.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        *,
        done: Number = 0,
        always: bool = False,
        clock: Callable[[], Number] = time.monotonic,
    ) -> None:
        self.description, self.total = description, total
        self._first = self._done = done
        self._always, self._clock = always, clock
        self._started = self._said = clock()
        self._over = Event()
        self._thread = Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        elapsed = self._clock() - self._started
        if kind is None and (self._said > self._started or (self._always and elapsed >= SHORTEST)):
            self._print(f"{self._counted()} after {duration(elapsed)}")

    def show(self, done: Number) -> None:
        """So many items, or this share, are done."""
        self._done = done
        self.beat()

    def beat(self) -> None:
        """Say how far it is, if the last line is long enough ago."""
        if self._clock() - self._said >= EVERY:
            self.say()

    def say(self) -> None:
        """Say how far it is."""
        self._said = self._clock()
        elapsed, advanced = self._said - self._started, self._done - self._first
        left = elapsed / advanced * ((self.total or 1) - self._done) if advanced > 0 else None
        rest = "" if left is None else f", about {duration(left)} left"
        self._print(f"{self._counted()}, {duration(elapsed)} so far{rest}")

    def _counted(self) -> str:
        counted = f"{self._done:.0%}" if self.total is None else f"{self._done:.0f} of {self.total:.0f}"
        return f"{self.description}: {counted}"

    def _print(self, text: str) -> None:
        log.print(text, markup=False, highlight=False, soft_wrap=True)

    def _tick(self) -> None:
        while not self._over.wait(EVERY / 2):
            self.beat()


@contextmanager
def _shown(description: str, total: int | None) -> Iterator[Callable[[Number], object]]:
    """Yields a function to be told how many of `total` items, or which share, is done."""
    if log.is_jupyter:
        with line() as write:
            yield _notebook_line(write, description, total)
    elif log.is_terminal:
        with progress.Progress(console=log, transient=True) as bars:
            task = bars.add_task(description, total=total or 1.0)
            yield lambda done: bars.update(task, completed=done)
    else:
        with Lines(description, total) as lines:
            yield lines.show


def _notebook_line(write: Callable[[str], object], description: str, total: int | None) -> Callable[[Number], object]:
    started = time.monotonic()

    def show(done: Number) -> None:
        if total is None:
            write(f"{description}: {done:.0%}")
            return
        left = f", about {(time.monotonic() - started) / done * (total - done):.0f} s left" if done else ""
        write(f"{description}: {done:.0f} of {total}{left}")

    return show


def track(items: Collection[Item], description: str) -> Iterator[Item]:
    """Yield the items, showing how many are done and how long the rest will take.

    Jupyter has no terminal and perhaps no ipywidgets, so there it is one line of plain text, emptied at the end.

    Args:
        items: with a length.
        description: of what they are, in the plural.
    """
    with _shown(description, len(items)) as show:
        for done, item in enumerate(items):
            show(done)
            yield item
        show(len(items))


@contextmanager
def bar(description: str) -> Iterator[Callable[[Number], object]]:
    """For work that is not a collection of items: yields a function to be told the share that is done.

    Args:
        description: of the work.
    """
    with _shown(description, None) as show:
        yield show


@contextmanager
def counter(total: int, description: str) -> Iterator[Callable[[], object]]:
    """For work that tells when an item is finished: yields a function to be called then.

    Args:
        total: how many items.
        description: of the work.
    """
    finished = 0
    with _shown(description, total) as show:

        def advance() -> None:
            nonlocal finished
            finished += 1
            show(finished)

        yield advance


class Stages:
    """Stages of work, one after the other, that tell how far they are: a bar for each on a terminal, else lines.

    Example:
        >>> with Stages() as stages:
        ...     stages.show("train", 30, 120)
    """

    def __init__(self) -> None:
        columns = (progress.TextColumn("{task.description}"), progress.BarColumn())
        left = progress.TimeRemainingColumn(elapsed_when_finished=True)
        self._bars = progress.Progress(*columns, left, console=log, disable=not log.is_terminal)
        self._tasks: dict[str, progress.TaskID] = {}
        self._name = ""
        self._lines: Lines | None = None
        self._open = ExitStack()

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
        self._bars.stop()

    def show(self, name: str, done: Number, total: Number = 1) -> None:
        """The stage of this name is so far; it begins when it is first named, and then the one before is over."""
        if log.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            self._bars.update(self._tasks[name], completed=done)
            return
        if self._lines is None or name != self._name:
            self._open.close()
            self._name, self._lines = name, self._open.enter_context(Lines(name, always=True))
        self._lines.show(done / total)


@contextmanager
def line() -> Iterator[Callable[[str], object]]:
    """A line of a notebook's output: yields a function that writes it; empty at the end, also after an exception."""
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    if handle is None:  # outside a kernel there is nobody to show it to
        yield lambda text: None
        return
    try:
        yield lambda text: handle.update({"text/plain": text}, raw=True)
    finally:
        handle.update({"text/plain": ""}, raw=True)
