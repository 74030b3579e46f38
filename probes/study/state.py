"""What a run folder holds: the parts of a study that are measured, and what each was measured from.

A part is one step on one cell. Its tables lie in RUN/MODEL/parts/CELL; beside them STEP.key.json, written last, holds
the hash of everything that determines them. A part whose hash is not today's is stale. Who measures a model has claimed
it (`probes.study.workers`); study.json, which all workers write, is held while it is.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp import claims
from interp.documents import checked, read_json_object
from interp.errors import InputError
from interp.files import atomic_file
from interp.redaction import redact
from probes.harness.names import BASELINE, NAME
from probes.harness.results import Result, read_result, versions
from probes.study.keys import SCHEMA_VERSION, Keys, judges_key
from probes.study.schema import Study, sha256_of
from probes.study.step import Asked
from probes.study.steps import BY_NAME, chosen_steps
from probes.study.workers import FOLDER as WORKERS

STATE, COPY = "study.json", "study.toml"
JUDGES = "judges"


class PartStatus(StrEnum):
    """What a part is."""

    DONE = "done"
    STALE = "stale"
    FAILED = "failed"
    MISSING = "missing"


class StudyPart(NamedTuple):
    """One step on one cell of one model."""

    model: str
    cell: str
    step: str


@dataclass(frozen=True)
class Record:
    """What is known of a part.

    Attributes:
        status: see `PartStatus`.
        key: hash of what determines it today; "" where its checkpoints are not there.
        seconds: how long it took, if it was measured.
        error: why it failed.
        host: the machine that measured it.
    """

    status: PartStatus
    key: str = ""
    seconds: float | None = None
    error: str = ""
    host: str = ""


class _Step(BaseModel):
    model_config = ConfigDict(strict=True)
    model: str = Field(pattern=NAME)
    cell: str
    step: str
    key: str
    error: str
    status: str = ""
    seconds: float | None = None

    @property
    def part(self) -> StudyPart:
        return StudyPart(self.model, self.cell, self.step)


class State(BaseModel):
    """What is read of study.json.

    Attributes:
        directory: what relative paths in the study file start from.
        steps: what was known of each part when the folder was last written.
    """

    model_config = ConfigDict(strict=True)
    directory: str
    steps: list[_Step]


def read_state(path: Path) -> State:
    """The study.json of a run folder.

    Raises:
        InputError: it is missing, damaged, or of another schema.
    """
    file = path / STATE
    try:
        document = read_json_object(file)
    except InputError as error:
        raise InputError(f"{file} is damaged ({error})", "what a study wrote", "Give another --out") from error
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} is a run of schema version {document.get('schema_version')}",
            f"version {SCHEMA_VERSION}",
            "Measure again into another folder with --out; nothing was changed in this one",
        )
    return checked(State, document, f"{file} is damaged")


class _Marker(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    key: str
    seconds: float
    results: list[str]
    host: str = ""


@dataclass
class RunFolder:
    """A study's run folder.

    Attributes:
        path: of the folder.
        failures: part → the key under which it failed, and why.
        keys: part → its key when the folder was last written.
    """

    path: Path
    failures: dict[StudyPart, tuple[str, str]] = field(default_factory=dict)
    keys: dict[StudyPart, str] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """The folder, with what its study.json says; nothing is written.

        Raises:
            InputError: it holds something else, or a run of another schema.
        """
        file = path / STATE
        if not file.exists():
            if (path / "matrix.json").exists():
                raise InputError(
                    f"{path} holds results but no {STATE}: it was not written by a study",
                    "a new folder, or one of this study",
                    "Move it away or give another one with --out",
                )
            return cls(path)
        state = read_state(path)
        keys = {step.part: step.key for step in state.steps}
        failed = {step.part: (step.key, step.error) for step in state.steps if step.error}
        return cls(path, failed, keys)

    def reload(self) -> None:
        """Take over what other workers have written since."""
        today = RunFolder.at(self.path)
        self.failures, self.keys = today.failures, today.keys

    def folder(self, part: StudyPart) -> Path:
        """Where a part's tables lie."""
        return self.path / part.model / "parts" / part.cell

    def marker(self, part: StudyPart) -> dict[str, Any] | None:
        """What was written when a part was finished: key, seconds, and the names of its results."""
        try:
            marker = read_marker(self.folder(part) / f"{part.step}.key.json")
        except InputError:  # missing, or damaged by a disk or a hand: it is measured again
            return None
        documents = [self.folder(part) / f"{name}.json" for name in marker.results]
        return marker.model_dump() if all(map(_is_whole, documents)) else None

    def write(self, part: StudyPart, key: str, results: Sequence[Result], seconds: float) -> None:
        """Keep a part's results, and last what says that they are whole."""
        folder = self.folder(part)
        for result in results:
            Result(result.probe, result.table, result.settings, result.warnings, result.seconds).write(folder)
        names = [result.probe for result in results]
        marker = {"key": key, "seconds": round(seconds, 3), "results": names, "host": socket.gethostname()}
        with atomic_file(folder / f"{part.step}.key.json") as temporary:
            temporary.write_text(json.dumps(marker))
        self.failures.pop(part, None)

    def results(self, part: StudyPart) -> list[Result]:
        """What a finished part measured."""
        marker = self.marker(part)
        return [read_result(self.folder(part) / f"{name}.json") for name in (marker["results"] if marker else ())]

    def record(self, part: StudyPart, key: str) -> Record:
        """Compare what is there with what would be measured today."""
        marker = self.marker(part)
        if marker is not None and key and marker["key"] == key:
            return Record(PartStatus.DONE, key, marker["seconds"], host=marker["host"])
        failed_key, error = self.failures.get(part, ("", ""))
        if error and failed_key == key:
            return Record(PartStatus.FAILED, key, None, error)
        return Record(PartStatus.MISSING if marker is None else PartStatus.STALE, key)

    def write_state(self, study: Study, records: Mapping[StudyPart, Record]) -> None:
        """Write what is known of some parts, or all, into study.json; what it says of others stays.

        Beside it goes the copy of the study file.
        """
        with claims.held(self.path / WORKERS / "state"):
            self._write_state(study, self._stored() | _all_told(records))

    def _stored(self) -> dict[StudyPart, dict[str, Any]]:
        steps = read_state(self.path).steps if (self.path / STATE).exists() else []
        return {step.part: step.model_dump() for step in steps}

    def _write_state(self, study: Study, told: Mapping[StudyPart, dict[str, Any]]) -> None:
        steps = [told[part] for part in [*parts_of(study), *judged_parts(study)] if part in told]
        document = {
            "schema_version": SCHEMA_VERSION,
            "directory": str(study.directory),
            "versions": versions(),
            "steps": steps,
        }
        for name, text in ((COPY, study.text), (STATE, json.dumps(document, indent=1))):
            with atomic_file(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def begin(self, study: Study, places: Places) -> dict[StudyPart, Record]:
        """Write what is known of all parts, and return it."""
        records(study, self, places)  # hashes checkpoints, which may take long, while nobody waits
        with claims.held(self.path / WORKERS / "state"):
            self.reload()
            known = records(study, self, places)
            self._write_state(study, self._stored() | _all_told(known))
        return known


def _all_told(known: Mapping[StudyPart, Record]) -> dict[StudyPart, dict[str, Any]]:
    """What study.json says of parts: not the machine, as a report with it is shared."""
    told = {part: part._asdict() | asdict(record) for part, record in known.items()}
    return {part: {name: value for name, value in about.items() if name != "host"} for part, about in told.items()}


def read_marker(file: Path) -> _Marker:
    """What says that a part is whole.

    Raises:
        InputError: it is missing or damaged.
    """
    return checked(_Marker, read_json_object(file), f"{file} is damaged")


def _is_whole(document: Path) -> bool:
    """Whether a result is as it was written; what a disk or a hand has damaged is measured again."""
    try:
        stamp = tuple((f.stat().st_size, f.stat().st_mtime_ns) for f in (document, document.with_suffix(".parquet")))
    except OSError:
        return False
    return _is_as_written(document, stamp)


@lru_cache(maxsize=100_000)
def _is_as_written(document: Path, stamp: tuple[tuple[int, int], ...]) -> bool:
    try:
        expected = read_json_object(document).get("table_sha256")
    except InputError:
        return False
    return expected in (None, sha256_of(document.with_suffix(".parquet")))


def parts_of(study: Study) -> list[StudyPart]:
    """Every part of a study, cell by cell."""
    steps = chosen_steps(study)
    return [StudyPart(m.name, cell, step.name) for m in study.models for cell in m.cell_names for step in steps]


def judged_parts(study: Study) -> list[StudyPart]:
    """What judges say of every model; nothing where the study has no judges."""
    return [judged(model.name) for model in study.models if study.judges.models]


Places = Mapping[str, Mapping[str, Path | None]]
"""Model → baseline and cells → where they are; see `probes.study.checkpoints.located`."""


def records(study: Study, folder: RunFolder, places: Places, looking: bool = False) -> dict[StudyPart, Record]:
    """What is done, stale, failed or missing.

    Args:
        study: the study as it is today.
        folder: of its run.
        places: where all checkpoints are.
        looking: at a run with its own copy of the study: what is not on this disk any more counts as unchanged.
    """
    keys = _keys(study, looking)
    by_name = {model.name: model for model in study.models}
    by_part = {}
    for part in parts_of(study):
        at = places[part.model]
        key = (
            ""
            if keys is None
            else keys.key(by_name[part.model], BY_NAME[part.step], part.cell, at[BASELINE], at[part.cell])
        )
        by_part[part] = folder.record(part, key or (folder.keys.get(part, "") if looking else ""))
    return by_part


def _keys(study: Study, looking: bool) -> Keys | None:
    try:
        return Keys(study, Asked.of(study))
    except InputError:  # the prompts are not there
        if looking:
            return None
        raise


def judged(model: str) -> StudyPart:
    """What judges say of all cells of a model: a part that is measured from the tables."""
    return StudyPart(model, "all", JUDGES)


def judge_records(study: Study, folder: RunFolder) -> dict[StudyPart, Record]:
    """The state of the judges' verdicts of every model; nothing where the study has no judges."""
    by_part, key = {}, judges_key(study)
    for part in judged_parts(study):
        error = folder.failures.get(part, ("", ""))[1]
        there = (folder.path / part.model / f"{JUDGES}.json").exists()
        stored_status = PartStatus.DONE if folder.keys.get(part) == key else PartStatus.STALE
        by_part[part] = Record(
            PartStatus.FAILED if error else stored_status if there else PartStatus.MISSING, key, error=error
        )
    return by_part


def reason_of(error: Exception) -> str:
    """What is recorded of an error; the type of one that nobody foresaw."""
    return redact(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")


def other_versions(folder: RunFolder, found: Mapping[StudyPart, Record]) -> list[str]:
    """Packages of which finished parts were measured with versions that are not installed: one line each."""
    installed = versions()
    counts: Counter[tuple[str, str]] = Counter()
    for part in (part for part, record in found.items() if record.status is PartStatus.DONE):
        marker = folder.marker(part)
        documents = [folder.folder(part) / f"{name}.json" for name in (marker or {"results": []})["results"]]
        measured = {pair for file in documents for pair in _versions_of(file).items()}
        counts.update((name, had) for name, had in measured if installed.get(name, had) != had)
    return [
        f"{count} finished parts were measured with {name} {had}, installed is {installed[name]}"
        for (name, had), count in sorted(counts.items())
    ]


def _versions_of(document: Path) -> dict[str, str]:
    package_versions = read_json_object(document).get("versions")
    return (
        {str(name): str(version) for name, version in package_versions.items()}
        if isinstance(package_versions, dict)
        else {}
    )


def as_table(found: Mapping[StudyPart, Record]) -> pd.DataFrame:
    """One row per part: model, cell, step, status, key, seconds, error."""
    columns = [*StudyPart._fields, *Record.__dataclass_fields__]
    return pd.DataFrame([part._asdict() | asdict(record) for part, record in found.items()], columns=columns)
