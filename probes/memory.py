"""What was observed of a baseline, kept while its cells are measured one by one.

A probe that is given one cell at a time would observe the baseline again for every cell. Inside `remembering` it is
observed once; outside, nothing is kept, so that a model whose weights somebody edits is never taken for what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Value = TypeVar("Value")

_memory: ContextVar[dict[Hashable, Any] | None] = ContextVar("memory", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Keep what `remembered` computes until the end of the block; inside another block, until the end of this one."""
    token = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(token)


def remembered(key: Hashable, compute: Callable[[], Value]) -> Value:
    """What `compute` returns, or returned for the same key in the same block.

    Args:
        key: everything that determines the value.
        compute: called without arguments.
    """
    memory = _memory.get()
    if memory is None:
        return compute()
    if key not in memory:
        memory[key] = compute()
    return memory[key]
