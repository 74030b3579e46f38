"""The store of verdicts: what a judge said of a response under a template, kept as soon as it is said."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from interp.errors import InputError
from probes.labels.label import Label

SCHEMA_VERSION = 1


class VerdictKey(NamedTuple):
    """What a verdict depends on."""

    judge: str
    template_sha256: str
    request_sha256: str
    response_sha256: str


class JudgeVerdict(NamedTuple):
    """What a judge said.

    Attributes:
        label: parsed from its text.
        text: all of it.
    """

    label: Label
    text: str


class VerdictStore:
    """Verdicts in an SQLite file. Each is committed when it comes, so that a killed run loses none.

    Raises:
        InputError: the file is no such store, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            # One thread at a time uses it: in a notebook judges are asked from another one than opened it.
            self._connection = sqlite3.connect(path, check_same_thread=False)
            self._check_version()
            key = ", ".join(VerdictKey._fields)
            columns = ", ".join(f"{name} TEXT NOT NULL" for name in (*VerdictKey._fields, *JudgeVerdict._fields))
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS verdicts ({columns}, PRIMARY KEY ({key})) STRICT")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._connection.commit()

    def get(self, key: VerdictKey) -> JudgeVerdict | None:
        """What was said before, if anything."""
        where = " AND ".join(f"{name} = ?" for name in VerdictKey._fields)
        with self._errors():
            row = self._connection.execute(f"SELECT label, text FROM verdicts WHERE {where}", key).fetchone()
        return None if row is None else JudgeVerdict(Label(row[0]), row[1])

    def put(self, key: VerdictKey, verdict: JudgeVerdict) -> None:
        """Keep a verdict."""
        values = (*key, str(verdict.label), verdict.text)
        with self._errors(), self._connection:
            self._connection.execute(f"INSERT OR REPLACE INTO verdicts VALUES ({', '.join('?' * len(values))})", values)

    def __len__(self) -> int:
        with self._errors():
            return int(self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def __enter__(self) -> VerdictStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def _check_version(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise InputError(
                f"The verdicts in {self.path} have schema version {version}",
                f"version {SCHEMA_VERSION}",
                "Use another file",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"The verdicts in {self.path} cannot be read or written: {error}",
                "an SQLite file that a judge's run made, on a disk with space left",
                "Free space or give another file with --cache; verdicts that were stored are kept",
            ) from error
