"""Atomic writes, locks and hashes: a path either holds a finished file (or directory) or what it held before."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from interp.documents import require_file
from interp.errors import InputError


def cache_directory() -> Path:
    """Where trained organisms and their cells are kept: `$QUANTSCOPE_CACHE`, else `~/.cache/quantscope`.

    Example:
        >>> write_cells(baseline, cache_directory() / "cells")
    """
    return Path(os.environ.get("QUANTSCOPE_CACHE", Path.home() / ".cache" / "quantscope"))


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OF_THE_DISK = _FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE, errno.EBUSY),
}
"""What the system says of a disk, a folder or a right: not of an error in a program."""
_FULL_IN_WORDS = ("No space left on device", "StorageFull", "database or disk is full", "Disk quota exceeded")
"""How libraries that write by themselves (safetensors, SQLite) say it without an OSError."""
LOCK = ".lock"
STALE = 24 * 60 * 60
"""Seconds after which a temporary file that nobody writes any more was left behind by a kill."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` on success and is removed on any exception.

    Raises:
        InputError: `path` cannot be written, or the disk is full.
    """
    with _writing(path):
        with _placing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
            os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with _placing(path):
                temporary.chmod(0o644)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; it becomes `path` on success and is removed on any exception.

    An existing `path` is replaced only at the end, so an interruption leaves the old one.

    Raises:
        InputError: `path` cannot be written, or the disk is full.
    """
    with _writing(path):
        with _placing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            with _placing(path):
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


@contextmanager
def locked(folder: Path, do: str) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it however the process ends.

    Args:
        folder: made if it is not there; the lock is its file `.lock`.
        do: what somebody who finds it held can do beside waiting.

    Raises:
        InputError: another process, or another thread of this one, holds it; or it cannot be written.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    owner = folder / f"{LOCK}.pid"
    with _placing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            try:
                lock.acquire()
            except NotImplementedError:  # the file system knows no locks: a file that names its process is one
                lock = SoftFileLock(folder / f"{LOCK}.soft", timeout=0)
                lock.acquire()
        except Timeout as error:
            raise InputError(
                f"The run folder {folder} is in use by {_owner(owner)}",
                "a folder that nobody else is writing",
                f"Wait for it, or {do}",
            ) from error
    try:
        with _placing(folder):
            owner.write_text(f"the process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[:200].strip() or "another process"
    except OSError:  # it has just begun, or just ended
        return "another process"


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk, a quota or the largest size of a file is reached."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(words in str(error) for words in _FULL_IN_WORDS)


def trouble_with_disk(error: BaseException, path: str | Path | None = None) -> InputError | None:
    """What to tell users of an error that a full disk, a read-only folder or the like caused; None for any other.

    Args:
        error: what was raised.
        path: what was written, where the error does not name it.
    """
    of_the_disk = isinstance(error, OSError) and error.errno in _OF_THE_DISK
    if not (of_the_disk or is_full(error)):
        return None
    named = getattr(error, "filename", None)
    where = named if isinstance(named, (str, Path)) else path or "A file"
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(
        f"{where} cannot be written ({reason})" if is_full(error) else f"{where} cannot be used ({reason})",
        "a place that can be written, with space left",
        "Free space there, or give another place; what was finished before is as it was",
    )


@contextmanager
def _placing(path: Path) -> Iterator[None]:
    """Whatever goes wrong with making `path` and its parents is told to the user."""
    try:
        yield
    except OSError as error:
        raise trouble_with_disk(error, path) or InputError(
            f"{path} cannot be written ({error.strerror or error})", "a place that can be written"
        ) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that gets full while something is written to `path` is told to the user; all else is the writer's."""
    try:
        yield
    except Exception as error:  # libraries raise kinds of their own for a full disk
        if isinstance(error, InputError) or not is_full(error):
            raise
        raise trouble_with_disk(error, path) or error from error


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


def child_search_path() -> str:
    """`PYTHONPATH` for a child process: it finds our packages from any directory, installed or in a clone."""
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
