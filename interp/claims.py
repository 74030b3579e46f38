"""Claims on work that many machines share: one process alone can make one, and that of a dead process expires.

A claim on PATH is the file PATH.N. Whoever takes one over from a dead owner makes PATH.N+1, and the highest number
counts, so that every change of owner is the making of a file that is not there yet: by a hard link, which is atomic on
network disks too. The owner touches its file again and again; its age is told by the clock of the disk, not by those of
the machines.
"""

from __future__ import annotations

import glob
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from secrets import token_hex
from threading import Event, Thread
from types import TracebackType

from pydantic import BaseModel, ConfigDict

from interp.documents import checked, read_json_object
from interp.errors import InputError

BEAT = 10.0
"""Seconds between two signs of life."""
EXPIRES = 120.0
"""Seconds without one after which an owner on another machine is dead: twice what a network disk may keep an old time
of a file in its cache, and then some beats."""
WAITS = (0.02, 1.0)
"""Seconds between two looks at what somebody else holds: the first and the longest."""


class Owner(BaseModel):
    """A process that made a claim.

    Attributes:
        id: of the claim, unlike any other.
        host: the machine's name.
        space: of the process ids: in containers those of one machine can mean different processes.
        pid: of the process.
        born: when it began, in seconds since 1970: another process may get its id afterwards.
    """

    model_config = ConfigDict(strict=True, frozen=True)
    id: str
    host: str
    space: str
    pid: int
    born: float

    @classmethod
    def this_process(cls) -> Owner:
        """The owner of a new claim."""
        host, pid = socket.gethostname(), os.getpid()
        return cls(id=f"{host}-{pid}-{token_hex(4)}", host=host, space=_space(), pid=pid, born=_born(pid) or 0.0)

    @property
    def is_here(self) -> bool:
        """Whether this machine can see the process."""
        return (self.host, self.space) == (socket.gethostname(), _space())

    @property
    def lives(self) -> bool:
        """Whether a process of this machine still runs."""
        born = _born(self.pid)
        return born is not None and abs(born - self.born) < 2

    def __str__(self) -> str:
        return f"the process {self.pid} on {self.host}"


@lru_cache(maxsize=1)
def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(pid: int) -> float | None:
    """When a process of this machine began; None where there is none, or only its exit code is left."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


class Claim:
    """A claim of this process; a thread shows that it lives until the claim is released.

    Args:
        file: what makes it.
        owner: this process.
    """

    def __init__(self, file: Path, owner: Owner) -> None:
        self.file, self.owner = file, owner
        self._over = Event()
        self._beating = Thread(target=self._beat, name="claim", daemon=True)
        self._beating.start()

    @property
    def lost(self) -> bool:
        """Whether somebody else took it over, after this process had been stopped for long."""
        return owner_of(self.file) != self.owner

    def release(self) -> None:
        """Let others have it."""
        self._over.set()
        self._beating.join()
        if not self.lost:
            self.file.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):  # a network disk that is away for a while, or a claim that is lost
                os.utime(self.file)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def take(path: Path) -> Claim | None:
    """Claim a path, if no living process holds it.

    Args:
        path: names what is claimed; its folder is made if it is not there.
    """
    before = newest(path)
    if before is not None and not expired(before):
        return None
    owner = Owner.this_process()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{owner.id}.draft")
    draft.write_text(owner.model_dump_json(), encoding="utf-8")
    try:
        return _made(path, before, draft, owner)
    finally:
        draft.unlink(missing_ok=True)


def _made(path: Path, before: Path | None, draft: Path, owner: Owner) -> Claim | None:
    """The claim that comes after `before`, unless another process was faster."""
    dead = None if before is None else owner_of(before)
    file = path.with_name(f"{path.name}.{1 if before is None else _number(before) + 1}")
    if not _link(draft, file):
        return None
    same = before is None or (before.exists() and owner_of(before) == dead)
    if newest(path) != file or not same:  # what was seen before is over: it was taken over or released since
        file.unlink(missing_ok=True)
        return None
    for older in _files(path)[:-1]:
        older.unlink(missing_ok=True)
    return Claim(file, owner)


def _link(draft: Path, file: Path) -> bool:
    """Whether this process made the file, which is whole as soon as it is there."""
    try:
        os.link(draft, file)
    except FileExistsError:  # by another process; or by this one, and the server's answer was lost and asked for again
        return draft.stat().st_nlink > 1
    except OSError:  # the disk knows no hard links
        return _create(file, draft.read_bytes())
    return True


def _create(file: Path, content: bytes) -> bool:
    try:
        with file.open("xb") as opened:
            opened.write(content)
    except FileExistsError:
        return False
    return True


def _nothing(owner: Owner | None) -> None:
    """Said to nobody."""


@contextmanager
def held(path: Path, waiting: Callable[[Owner | None], object] = _nothing) -> Iterator[Claim]:
    """Hold a path, after waiting for whoever holds it.

    Args:
        path: as of `take`.
        waiting: called with who holds it, where that takes longer than a second.
    """
    wait, longest = WAITS
    while (claim := take(path)) is None:
        time.sleep(wait)
        if wait < longest <= 2 * wait:
            waiting(holder(path))
        wait = min(2 * wait, longest)
    with claim:
        yield claim


def holder(path: Path) -> Owner | None:
    """The living process that holds a path, or None.

    Of one on another machine this is known when it shows the next sign of life or expires, and so long this waits.
    """
    while (file := newest(path)) is not None and not expired(file):
        owner = owner_of(file)
        if owner is not None and (owner.is_here or _shows_life(file)):
            return owner
    return None


def _shows_life(file: Path) -> bool:
    seen = _modified(file)
    while seen is not None and _modified(file) == seen and not expired(file):
        time.sleep(WAITS[1])
    return _modified(file) not in (None, seen)


def newest(path: Path) -> Path | None:
    """The file that says who holds a path, or held it when they died."""
    files = _files(path)
    return files[-1] if files else None


def expired(file: Path) -> bool:
    """Whether the owner of a claim is dead, as far as can be told, or the claim is released.

    Args:
        file: as `newest` gives it.
    """
    owner, modified = owner_of(file), _modified(file)
    if modified is None:
        return True
    if owner is not None and owner.is_here:
        return not owner.lives
    return _now(file.parent) - modified > EXPIRES


def owner_of(file: Path) -> Owner | None:
    """Who made a claim; None where it is released, or its making was interrupted."""
    try:
        return checked(Owner, read_json_object(file), str(file))
    except InputError:
        return None


def silence(file: Path) -> float:
    """Seconds since the last sign of life of a claim's owner, 0 where it is released."""
    modified = _modified(file)
    return 0.0 if modified is None else max(0.0, _now(file.parent) - modified)


def _files(path: Path) -> list[Path]:
    files = path.parent.glob(f"{glob.escape(path.name)}.*")
    return sorted((file for file in files if file.name.removeprefix(f"{path.name}.").isdecimal()), key=_number)


def _number(file: Path) -> int:
    return int(file.name.rpartition(".")[2])


def _modified(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _now(folder: Path) -> float:
    """The time by the clock of a folder's disk; of this machine where nothing can be written there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
