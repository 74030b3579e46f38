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
AT_MOST = 2**26
"""Bytes that are read of all files of a checkpoint before their mappings go."""


class Mapped(Generic[Handle]):
    """The files of a checkpoint and what reads each through a mapping.

    Args:
        opened: maps a file; what it returns lets the mapping go when nobody holds it any more.
    """

    def __init__(self, opened: Callable[[Path], Handle]) -> None:
        self._opened = opened
        self._handles: dict[Path, Handle] = {}
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self._read = 0

    def reading(self, file: Path, n_bytes: int) -> Handle:
        """What reads a file, for the next so many bytes.

        Raises:
            InputError: the file is no longer the one that was opened first.
        """
        if self._read + n_bytes > AT_MOST and self._read > 0:
            self._handles.clear()
            self._read = 0
        if file not in self._handles:
            self._handles[file] = self._open(file)
        self._read += n_bytes
        return self._handles[file]

    def _open(self, file: Path) -> Handle:
        if file in self._stamps and (not file.exists() or _stamp(file) != self._stamps[file]):
            raise InputError(
                f"{file} was changed or moved while it was read",
                "the file that was opened",
                "Leave checkpoints alone while they are measured, and start again",
            )
        handle = self._opened(file)
        self._stamps[file] = _stamp(file)
        return handle


def _stamp(file: Path) -> tuple[int, int, int]:
    about = file.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns
