"""Atomic writes and content hashes: a path either holds a finished file (or directory) or what it held before."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from interp.documents import require_file


def cache_directory() -> Path:
    """Where trained organisms and their cells are kept: `$QUANTSCOPE_CACHE`, else `~/.cache/quantscope`."""
    return Path(os.environ.get("QUANTSCOPE_CACHE", Path.home() / ".cache" / "quantscope"))


STALE = 24 * 60 * 60
"""Seconds after which a temporary file that nobody writes any more was left behind by a kill."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` on success and is removed on any exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; it becomes `path` on success and is removed on any exception.

    An existing `path` is replaced only at the end, so an interruption leaves the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            old = temporary.with_name(temporary.name + ".old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what a kill left of earlier attempts to write `path`; what is younger may be being written."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with suppress(OSError):  # another process removes it too, or finishes it
            written = max(part.stat().st_mtime for part in (left, *left.rglob("*")))
            if time.time() - written < STALE:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with require_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
