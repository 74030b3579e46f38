"""Inspect's loop where another one runs already, as in Jupyter.

Inspect, and anyio under it, start an event loop of their own; a thread can run only one.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

Returned = TypeVar("Returned")


def without_loop(work: Callable[[], Returned]) -> Returned:
    """What `work` returns, called where no event loop runs: here, or in a thread if one runs here.

    Ctrl-C (Jupyter's interrupt) ends work in a thread too, when it next runs Python code.

    Args:
        work: may start an event loop.

    Raises:
        BaseException: what `work` raises.
    """
    if not _runs_a_loop():
        return work()
    future: Future[Returned] = Future()

    def record() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = Thread(target=record, name="quantscope-inspect", daemon=True)
    with outside_notebook():
        thread.start()
        try:
            wait([future])  # Thread.join takes the thread for ended when it is interrupted
        except KeyboardInterrupt:
            _interrupt(thread)
            wait([future])
            raise
    return future.result()


@contextmanager
def outside_notebook() -> Iterator[None]:
    """Inspect believes that it is in no notebook.

    In one it wants ipywidgets, for a display that is not shown here, and changes asyncio for the whole process. It asks
    IPython, whose answer is exchanged for the moment.
    """
    ipython = sys.modules.get("IPython")
    if ipython is None:
        yield
        return
    asked = ipython.get_ipython
    ipython.get_ipython = lambda: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        ipython.get_ipython = asked  # type: ignore[attr-defined]


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _interrupt(thread: Thread) -> None:
    """Raise KeyboardInterrupt in a thread, as a signal does in the main one."""
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
