"""Progress where it is seen: a bar on a terminal, one line that goes away in a notebook, nothing in a file or pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich import progress

from interp.cli import log

Item = TypeVar("Item")


def track(items: Collection[Item], description: str) -> Iterator[Item]:
    """Yield the items, showing how many are done and how long the rest will take.

    Jupyter has no terminal and perhaps no ipywidgets, so there it is one line of plain text, emptied at the end.

    Args:
        items: with a length.
        description: of what they are, in the plural.
    """
    if not log.is_jupyter:
        yield from progress.track(items, description, console=log, transient=True, disable=not log.is_terminal)
        return
    started = time.monotonic()
    with line() as show:
        for done, item in enumerate(items):
            left = (time.monotonic() - started) / done * (len(items) - done) if done else None
            show(f"{description}: {done} of {len(items)}" + ("" if left is None else f", about {left:.0f} s left"))
            yield item


@contextmanager
def bar(description: str) -> Iterator[Callable[[float], object]]:
    """For work that is not a collection of items: yields a function to be told the share that is done.

    Args:
        description: of the work.
    """
    if log.is_jupyter:
        with line() as show:
            yield lambda share: show(f"{description}: {share:.0%}")
        return
    with progress.Progress(console=log, transient=True, disable=not log.is_terminal) as bars:
        task = bars.add_task(description, total=1.0)
        yield lambda share: bars.update(task, completed=share)


@contextmanager
def counter(total: int, description: str) -> Iterator[Callable[[], object]]:
    """For work that tells when an item is finished: yields a function to be called then.

    Args:
        total: how many items.
        description: of the work.
    """
    finished = 0
    with bar(description) as show:

        def advance() -> None:
            nonlocal finished
            finished += 1
            show(finished / total)

        yield advance


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
