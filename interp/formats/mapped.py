"""Files that are mapped into memory, mapped anew now and then.

The pages of a mapped file that were read count as memory of the process until the mapping goes, although the system
takes them back when it needs them: schedulers and people who watch a process cannot tell them from its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from interp.errors import InputError

Handle = TypeVar("Handle")
AT_MOST = 2**28
"""Bytes that are read through one mapping."""


class Mapped(Generic[Handle]):
    """A file and what reads it through a mapping.

    Args:
        file: that is mapped.
        opened: maps it; what it returns lets the mapping go when nobody holds it any more.
    """

    def __init__(self, file: Path, opened: Callable[[Path], Handle]) -> None:
        self._file, self._opened = file, opened
        self._handle = opened(file)
        self._stamp = _stamp(file)
        self._read = 0

    def reading(self, n_bytes: int) -> Handle:
        """What reads the file, for the next so many bytes.

        Raises:
            InputError: the file is no longer the one that was opened.
        """
        if self._read + n_bytes > AT_MOST and self._read > 0:
            self._renew()
        self._read += n_bytes
        return self._handle

    def _renew(self) -> None:
        if not self._file.exists() or _stamp(self._file) != self._stamp:
            raise InputError(
                f"{self._file} was changed or moved while it was read",
                "the file that was opened",
                "Leave checkpoints alone while they are measured, and start again",
            )
        del self._handle
        self._handle, self._read = self._opened(self._file), 0


def _stamp(file: Path) -> tuple[int, int, int]:
    about = file.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns
