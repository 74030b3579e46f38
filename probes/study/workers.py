"""Who works in a run folder: every worker is told of there, claims the models that it measures, and has the same study.

All of it lies in RUN/.workers: ID.json tells of a worker, `ID`, `model-NAME`, `state` and `tables` are claims (see
`interp.claims`), and study.json says what all workers agree on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from interp import claims
from interp.claims import Claim, Owner
from interp.documents import checked, read_json_object
from interp.errors import InputError
from interp.files import atomic_file

FOLDER, AGREED = ".workers", "study.json"
AT_WORK, LOST = "at work", "lost"
"""What a worker is that has not ended: alive, or dead without a word."""


class WorkerRecord(BaseModel):
    """What a worker tells of itself.

    Attributes:
        owner: its process.
        shard: its share of the models, "2/4", or "" for all.
        began: when, in UTC.
        seconds: since then, when this was written.
        model: that it measures, or "".
        finished: parts that it has measured.
        failed: parts that it could not measure.
        ended: how, or "" while it works.
    """

    model_config = ConfigDict(strict=True)
    owner: Owner
    shard: str = ""
    began: str = ""
    seconds: float = 0.0
    model: str = ""
    finished: int = 0
    failed: int = 0
    ended: str = ""


@dataclass
class Worker:
    """This process as a worker of a run folder.

    Attributes:
        run: the run folder.
        record: what it tells of itself.
        started: when it began, by the monotonic clock.
    """

    run: Path
    record: WorkerRecord
    started: float

    @contextmanager
    def measuring(self, model: str) -> Iterator[Claim | None]:
        """Claim a model while it is measured; None where another worker holds it."""
        claim = claims.take(model_claim(self.run, model))
        if claim is None:
            yield None
            return
        with claim:
            self.tell(model=model)
            yield claim
            self.tell(model="")

    def counted(self, failed: bool) -> None:
        """One more part is finished, or could not be measured."""
        name = "failed" if failed else "finished"
        self.tell(**{name: getattr(self.record, name) + 1})

    def leave(self, ended: str) -> None:
        """Tell how it ended; one that found nothing to measure is not told of."""
        self.tell(ended=ended, model="")
        if not self.record.finished + self.record.failed:
            self._file.unlink(missing_ok=True)

    @property
    def _file(self) -> Path:
        return self.run / FOLDER / f"{self.record.owner.id}.json"

    def tell(self, **changed: str | int) -> None:
        """Write what has changed where others read it."""
        seconds = round(time.monotonic() - self.started, 3)
        self.record = self.record.model_copy(update={**changed, "seconds": seconds})
        with atomic_file(self._file) as temporary:
            temporary.write_text(self.record.model_dump_json())


@contextmanager
def joined(run: Path, agreement: Mapping[str, str], shard: str = "", changed: bool = False) -> Iterator[Worker]:
    """Work in a run folder.

    Args:
        run: the folder.
        agreement: name → hash of everything that all workers must have in common.
        shard: "" or this worker's share, as it is to be told.
        changed: a shard may take a changed study over.

    Raises:
        InputError: another worker, or other shards of this study, have something else in common.
    """
    with claims.held(run / FOLDER / "state"):
        _agree(run, agreement, strict=bool(shard) and not changed)
        owner = Owner.this_process()
        claim = claims.take(run / FOLDER / owner.id)
        assert claim is not None, "nobody else has this name"
    record = WorkerRecord(owner=owner, shard=shard, began=datetime.now(UTC).isoformat(timespec="seconds"))
    worker = Worker(run, record, time.monotonic())
    ended = "stopped"
    with claim:
        worker.tell()
        try:
            yield worker
            ended = "finished"
        finally:
            worker.leave(ended)


def _agree(run: Path, agreement: Mapping[str, str], strict: bool) -> None:
    """Write what all workers have in common, or compare it with what is written."""
    file = run / FOLDER / AGREED
    written = _written(file)
    if written in (None, agreement):
        different: list[str] = []
    else:
        different = [name for name, value in agreement.items() if (written or {}).get(name) != value]
    others = [str(record.owner) for record, state in _records(run) if state == AT_WORK]
    if different and others:
        raise InputError(
            f"{', '.join(others)} measures another study in {run}: {', '.join(different)} differ",
            "the same study of all workers of a run folder",
            "Wait for it, or give another folder with --out",
        )
    if different and strict:
        raise InputError(
            f"The shards in {run} are of another study: {', '.join(different)} differ",
            "the same study in all shards",
            "Give the file that they were given, or another folder with --out; if it was changed on purpose, --changed",
        )
    if written != agreement:
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(agreement, indent=1))


def _written(file: Path) -> dict[str, str] | None:
    if not file.exists():
        return None
    return {name: str(value) for name, value in read_json_object(file).items()}


def model_claim(run: Path, model: str) -> Path:
    """The claim on a model."""
    return run / FOLDER / f"model-{model}"


def holder(run: Path, model: str) -> Owner | None:
    """The living process that measures a model; see `interp.claims.holder`."""
    return claims.holder(model_claim(run, model))


def roster(run: Path) -> pd.DataFrame:
    """One row per worker: host, pid, shard, state, model, finished, failed, seconds, silent.

    The last is how many seconds ago one that has not ended showed that it lives.
    """
    columns = ["host", "pid", "shard", "state", "model", "finished", "failed", "seconds", "silent"]
    return pd.DataFrame([_row(run, record, state) for record, state in _records(run)], columns=columns)


def _record(file: Path) -> WorkerRecord | None:
    try:
        return checked(WorkerRecord, read_json_object(file), str(file))
    except InputError:  # damaged by a disk or a hand; no number depends on it
        return None


def _row(run: Path, record: WorkerRecord, state: str) -> dict[str, str | float]:
    told = record.model_dump(include={"shard", "model", "finished", "failed", "seconds"})
    file = claims.newest(run / FOLDER / record.owner.id)
    silent = 0.0 if file is None else round(claims.silence(file), 1)
    return {"host": record.owner.host, "pid": record.owner.pid, "state": state, "silent": silent, **told}


def counted(run: Path) -> dict[str, tuple[int, str]]:
    """Worker → how many parts it finished or could not measure, and the model that it measures, "" if none."""
    return {
        record.owner.id: (record.finished + record.failed, record.model if state == AT_WORK else "")
        for record, state in _records(run)
    }


def _records(run: Path) -> Iterator[tuple[WorkerRecord, str]]:
    """Every worker that is told of, and its state, in the order in which they began."""
    files = (file for file in (run / FOLDER).glob("*.json") if file.name != AGREED)
    records = filter(None, map(_record, files))
    for record in sorted(records, key=lambda record: record.began):
        claim = claims.newest(run / FOLDER / record.owner.id)
        alive = claim is not None and not claims.expired(claim)
        yield record, record.ended or (AT_WORK if alive else LOST)
