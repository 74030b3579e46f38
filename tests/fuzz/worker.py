"""One reader in a process of its own, with limits: a hang, an abort or a flood of memory is a finding, not the end."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from interp.errors import InputError
from tests.fuzz.mutations import mutate

SECONDS = 10.0
MEMORY = 2 * 2**30
LONGEST_MESSAGE = 20_000
"""Characters: nobody reads more, and a megabyte of the file itself is no explanation."""
_PACKAGES = (f"{os.sep}interp{os.sep}", f"{os.sep}probes{os.sep}")


@dataclass(frozen=True)
class Reader:
    """Something that reads what comes from outside.

    Attributes:
        name: of the reader.
        seeds: folders with valid input.
        read: reads such a folder; whatever it raises beside `InputError` is a finding.
        damaged: patterns of the files in it that are damaged; others stay as they are.
        check: what is wrong with what an accepted folder was read as, or None.
    """

    name: str
    seeds: tuple[Path, ...]
    read: Callable[[Path], Any]
    damaged: tuple[str, ...] = ("*",)
    check: Callable[[Path, Any], str | None] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        number: of the input.
        kind: "accepted", "refused" or "finding".
        what: the error's first line, or what was found.
        where: file and line of our own code, for a finding.
        seconds: that reading took.
        mebibytes: the most memory that the process has had, above what it began with.
    """

    number: int
    kind: str
    what: str
    where: str
    seconds: float
    mebibytes: float


def damage(reader: Reader, number: int, folder: Path) -> Path:
    """Write input `number` into a folder, as links to the seed's files but for the damaged one, which is returned."""
    random = Random(f"{reader.name}/{number}")
    seed = random.choice(reader.seeds)
    shutil.copytree(seed, folder, copy_function=os.link, dirs_exist_ok=True)
    files = sorted({path.relative_to(seed) for pattern in reader.damaged for path in seed.rglob(pattern)})
    name = random.choice([file for file in files if (seed / file).is_file()])
    content = mutate(random, name.name, (seed / name).read_bytes())
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    return folder / name


def attempt(reader: Reader, number: int, folder: Path) -> Outcome:
    """Read one input and say what became of it."""
    damage(reader, number, folder)
    before, started = _peak(), time.perf_counter()
    kind, what, where = read(reader, folder)
    return Outcome(number, kind, what, where, time.perf_counter() - started, max(0.0, _peak() - before))


def read(reader: Reader, folder: Path, raising: bool = False) -> tuple[str, str, str]:
    """Kind, what and where of an outcome.

    Args:
        reader: of the folder.
        folder: with the input.
        raising: let what is a finding through, to see where it was raised.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader.read(folder)
    except InputError as error:
        message = str(error)
        if len(message) > LONGEST_MESSAGE:
            return "finding", f"a message of {len(message)} characters", _place(error)
        return "refused", message.split("\n")[0][:300], ""
    except BaseException as error:  # a panic of a Rust library is not an Exception
        if raising or isinstance(error, KeyboardInterrupt):
            raise
        return "finding", f"{type(error).__name__}: {str(error)[:200]}", _place(error)
    wrong = _wrong(reader, folder, found)
    return ("finding", f"accepted, but {wrong}", "") if wrong else ("accepted", "", "")


def _wrong(reader: Reader, folder: Path, found: Any) -> str | None:
    """What a reader's check says; a file that is accepted and that the check cannot read is a finding, too."""
    try:
        return reader.check(folder, found) if reader.check is not None else None
    except Exception as error:  # whatever the independent reader makes of a damaged file
        return f"the check ended with {type(error).__name__}: {str(error)[:200]}"


def _place(error: BaseException) -> str:
    """The innermost line of our own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if any(part in f.filename for part in _PACKAGES)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _peak() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _serve(reader: Reader, connection: Connection) -> None:
    """Answer numbers with outcomes, until there are no more."""
    faulthandler.disable()  # pytest's, which would report what is reported here
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 — for the life of the process
    if sys.platform == "linux":
        limit = _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with contextlib.suppress(EOFError), tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        while True:
            folder = Path(temporary) / "input"
            connection.send(attempt(reader, connection.recv(), folder))
            shutil.rmtree(folder, ignore_errors=True)


class Worker:
    """A process that reads one input after another, and another process after one that was killed."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._context = multiprocessing.get_context("fork")
        self._start()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(self.reader, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def outcome(self, number: int) -> Outcome:
        """Of one input."""
        try:
            self._connection.send(number)
            if self._connection.poll(SECONDS):
                return self._connection.recv()
            found, seconds = f"no answer within {SECONDS:g} s", SECONDS
        except (EOFError, OSError):
            self._process.join()
            found, seconds = f"the process died (exit code {self._process.exitcode})", 0.0
        self.close()
        self._start()
        return Outcome(number, "finding", found, "", seconds, 0.0)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def outcomes(reader: Reader, numbers: Iterator[int] | range) -> Iterator[Outcome]:
    """Of many inputs, in their order."""
    worker = Worker(reader)
    try:
        for number in numbers:
            yield worker.outcome(number)
    finally:
        worker.close()
