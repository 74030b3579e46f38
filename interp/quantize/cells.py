"""Cells on disk: what one says about itself (`quantscope.json`), when it is up to date, and writing what is not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from interp.child import JobReport
from interp.documents import checked, read_json_object
from interp.errors import InputError, MissingExtra
from interp.files import atomic_directory, sha256

RECORD = "quantscope.json"
SCHEMA_VERSION = 1
_CONTENT = (".safetensors", ".json", ".jinja", ".gguf", ".model", ".txt")


@dataclass(frozen=True)
class CellRecord:
    """How a cell was written.

    Attributes:
        cell: "AWQ", "GPTQ", "F16", "Q4_K_M" ….
        writer: the program that chose the quantized values.
        versions: package versions that can change them.
        settings: what the writer was told.
        content_key: hash of baseline, calibration, settings and versions; the cell is up to date while it is the same.
        weights: the name of the file to open, or "." for the directory.
        details: what the writer reported, e.g. how many tensors have which type.
        notes: what a reader of results must know, e.g. that the writer changed the model before any rounding.
        seconds: wall-clock time; the first cell of a run pays for the writer's start-up.
    """

    cell: str
    writer: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    content_key: str
    weights: str = "."
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    seconds: float = 0.0

    def write(self, directory: Path) -> None:
        """Write the record into the cell's directory."""
        document = {"schema_version": SCHEMA_VERSION} | asdict(self)
        (directory / RECORD).write_text(json.dumps(document, indent=2) + "\n")


class _Document(BaseModel):
    """`CellRecord` as it is written; what it names to be opened lies beside it."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    schema_version: int
    cell: str
    writer: str
    versions: dict[str, str]
    settings: dict[str, Any]
    content_key: str
    weights: str = Field(default=".", pattern=r"^(\.|[^/\\\x00]*[^/\\\x00.][^/\\\x00]*)$")
    details: dict[str, Any] = {}
    notes: list[str] = []
    seconds: float = 0.0


def read_record(cell: Path) -> CellRecord | None:
    """The record of a cell (its directory or its .gguf file); None where it was not written by this project.

    Raises:
        InputError: the record is damaged or of another schema version.
    """
    path = (cell if cell.is_dir() else cell.parent) / RECORD
    if not path.is_file():
        return None
    document = read_json_object(path, "the record of a cell")
    if document.get("schema_version") != SCHEMA_VERSION:
        problem = f"{path} has schema version {document.get('schema_version')}"
        raise InputError(problem, f"schema version {SCHEMA_VERSION}", "Delete the cell and write it again")
    record = checked(_Document, document, f"{path} is not the record of a cell")
    return CellRecord(**record.model_dump(exclude={"schema_version"}))


Outcome = tuple[Mapping[str, Any], Sequence[str]]
"""A finished cell's details and notes."""


@dataclass(frozen=True)
class Job:
    """A cell to be written.

    Attributes:
        planned: its record, without what is only known afterwards.
        out: its directory. The writer's log is the file of that name with `.log` added.
        fill: writes the weights; called with their path (in a temporary directory), the log, and what to report to.
    """

    planned: CellRecord
    out: Path
    fill: Callable[[Path, Path, JobReport | None], Outcome]

    @property
    def result(self) -> Path:
        """What to open once the cell is written."""
        return self.out / self.planned.weights

    def is_current(self) -> bool:
        """Whether the cell is there and nothing that determines its content has changed.

        Raises:
            InputError: something that is not a cell is in its place.
        """
        if not self.out.exists():
            return False
        record = read_record(self.out) if self.out.is_dir() else None
        if record is None:
            raise InputError(
                f"{self.out} exists and is not a cell, so it will not be replaced",
                do="Move it away, or write elsewhere",
            )
        return record.content_key == self.planned.content_key and self.result.exists()

    def write(self, report: JobReport | None = None) -> Path:
        """Write the cell, or its new version, and return what to open; an interruption leaves what was there."""
        log = self.out.with_name(self.out.name + ".log")
        started = time.monotonic()
        with atomic_directory(self.out) as directory:
            details, notes = self.fill(directory / self.planned.weights, log, report)
            seconds = round(time.monotonic() - started, 2)
            replace(self.planned, details=details, notes=notes, seconds=seconds).write(directory)
        return self.result


def content_hash(checkpoint: Path) -> str:
    """Hex SHA-256 over names and content of a checkpoint's files: weights, config and tokenizer."""
    if checkpoint.is_file():
        return sha256(checkpoint)
    files = sorted(f for f in checkpoint.iterdir() if f.suffix in _CONTENT and f.name != RECORD)
    return _digest(f"{file.name}\0{sha256(file)}" for file in files)


def content_key(**ingredients: Any) -> str:
    """Hex SHA-256 of everything that determines a cell's content."""
    return _digest([json.dumps(ingredients, sort_keys=True)])


def text_hash(texts: Sequence[str]) -> str:
    """Hex SHA-256 of a list of texts."""
    return _digest([json.dumps(list(texts))])


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages, read without importing them."""
    return {package: metadata.version(package) for package in packages}


def need(module: str, package: str, extra: str, purpose: str) -> None:
    """Raise `MissingExtra` unless `module` can be imported; it is not imported here."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(package, extra, purpose)


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
