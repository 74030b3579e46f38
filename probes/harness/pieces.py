"""Finished pieces of a measurement, kept on disk so that an interrupted command goes on where it was.

A command that takes long opens a store (`keeping`); whoever compares models says what all that follows is determined by
(`determined_by`: checkpoints, prompts, options, as a hash); and whatever takes its time goes through `kept`, which
computes it or reads what an interrupted run computed. Without a store, or where nothing says what determines a piece
(models made in memory), everything is computed. When the command has written its results the pieces are removed.

Pieces are tensors, numbers, texts and named classes of ours, read by torch's restricted reader: a file in a results
folder cannot run code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import typer

from interp import cli
from interp.files import atomic_file
from interp.quantize.cells import content_key

Piece = TypeVar("Piece")
FOLDER = ".pieces"


@dataclass
class Pieces:
    """A store of pieces.

    Attributes:
        folder: where they lie; made with the first piece.
        touched: files that this run wrote or read.
    """

    folder: Path
    touched: set[Path] = field(default_factory=set)

    def exist(self) -> bool:
        """Whether this run finished a piece or found one that it can use."""
        return any(file.exists() for file in self.touched)

    def value(self, key: str, compute: Callable[[], Piece], classes: Sequence[type]) -> Piece:
        """The piece of this key: as it was kept, or computed and kept."""
        file = self.folder / f"{key}.pt"
        holder = _read(file, classes)
        if holder is None:
            holder = (_plain(compute()),)
            _write(file, holder)
        self.touched.add(file)
        return holder[0]

    def clear(self) -> None:
        """Remove what this run touched, and the folder if nothing else is in it."""
        for file in self.touched:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or pieces of another run are
            self.folder.rmdir()


_store: ContextVar[Pieces | None] = ContextVar("store", default=None)
_scope: ContextVar[str | None] = ContextVar("scope", default=None)


@contextmanager
def keeping(out: Path) -> Iterator[Pieces]:
    """Keep finished pieces in `out` until the block ends; an interruption, which says so, or an error leaves them.

    Args:
        out: of the command.
    """
    pieces = Pieces(out / FOLDER)
    token = _store.set(pieces)
    try:
        with cli.resumable(pieces.exist):
            yield pieces
        pieces.clear()
    except typer.Exit:
        pieces.clear()
        raise
    finally:
        _store.reset(token)


@contextmanager
def determined_by(key: str | None) -> Iterator[None]:
    """Inside, pieces are determined by this hash and by what `kept` is told; None: they cannot be kept."""
    token = _scope.set(key)
    try:
        yield
    finally:
        _scope.reset(token)


def kept(what: Sequence[Any], compute: Callable[[], Piece], classes: Sequence[type] = ()) -> Piece:
    """What `compute` returns, or returned in a run that was interrupted.

    Args:
        what: a name for it and everything that determines it beside the scope; texts, numbers and lists of these.
        compute: called without arguments; returns tensors, plain values, containers of them, or `classes`.
        classes: of ours that the value is made of.
    """
    store, scope = _store.get(), _scope.get()
    if store is None or scope is None:
        return compute()
    return store.value(content_key(scope=scope, what=list(what)), compute, classes)


def _plain(value: Any) -> Any:
    """With Python's numbers for numpy's, which the restricted reader does not know."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return {key: _plain(item) for key, item in value.items()} if type(value) is dict else value


def _write(file: Path, piece: tuple[Any]) -> None:
    import torch

    with atomic_file(file) as temporary:
        torch.save(piece, temporary)


def _read(file: Path, classes: Sequence[type]) -> tuple[Any] | None:
    """None where there is none, or what is there is damaged: then it is computed again."""
    import torch

    if not file.is_file():
        return None
    try:
        with torch.serialization.safe_globals(list(classes)):
            content = torch.load(file, weights_only=True)
    except Exception:  # whatever torch's reader meets in a damaged file
        return None
    return content if isinstance(content, tuple) and len(content) == 1 else None
