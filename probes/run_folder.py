"""A behavioural run: tasks that several subjects answer, kept in one folder from which an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interp.errors import InputError
from interp.files import atomic_file
from probes import cli

if TYPE_CHECKING:
    from inspect_ai import Task

    from probes.subjects import Subject


@dataclass(frozen=True)
class RunFolder:
    """What is asked, and where the answers are kept.

    Attributes:
        path: holds run.json and cells/NAME with Inspect's logs.
        tasks: by name.
        max_new_tokens: where an answer is cut.
        connections: requests at once.
        retries: of a request that a server did not answer.
    """

    path: Path
    tasks: Mapping[str, Task]
    max_new_tokens: int
    connections: int
    retries: int = 5

    def texts(self) -> list[str]:
        """Every request of every task."""
        return [str(sample.input) for task in self.tasks.values() for sample in task.dataset]

    def describe(self) -> dict[str, Any]:
        """What determines the answers, but for who answers."""
        tasks = {name: {"n": len(task.dataset), "sha256": _sha256(task)} for name, task in self.tasks.items()}
        return {"tasks": tasks, "max_new_tokens": self.max_new_tokens, "decoding": "greedy"}

    def claim(self, described: dict[str, Any]) -> None:
        """Make the folder this run's, or find that it is already.

        Raises:
            InputError: it holds another run, with what differs; or it cannot be written.
        """
        file = self.path / "run.json"
        try:
            before = json.loads(file.read_text()) if file.exists() else None
            if before is None:
                with atomic_file(file) as temporary:
                    temporary.write_text(json.dumps(described, indent=2))
                return
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be used ({error})", "a folder of this run", "Give another one") from error
        if differing := [key for key, value in _as_json(described).items() if before.get(key) != value]:
            raise InputError(
                f"{self.path} holds a run with other settings ({', '.join(differing)} differ, see {file})",
                "the same command, which goes on, or a new folder",
                "Give another one with --out",
            )

    def answers(self, name: str, subject: Subject, engine: str, shuffle: int | None = None) -> pd.DataFrame:
        """The outcomes of one subject on all tasks; those that are already there are not asked for again.

        Args:
            name: of the cell.
            subject: who answers.
            engine: recorded with every outcome.
            shuffle: a seed for another order of the requests.

        Raises:
            InputError: the run stopped before its end.
        """
        from probes.inspect_run import outcomes, run_cell

        model = subject.model()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        try:
            with Progress(*columns, console=cli.log, transient=True, disable=not cli.log.is_terminal) as bars:
                bar = bars.add_task(name, total=sum(len(task.dataset) for task in self.tasks.values()))
                logs = run_cell(
                    list(self.tasks.values()),
                    model,
                    self.path / "cells" / name,
                    max_new_tokens=self.max_new_tokens,
                    max_connections=self.connections,
                    retries=self.retries,
                    shuffle=shuffle,
                    finished=lambda: bars.advance(bar),
                )
        finally:
            anyio.run(model.api.aclose)  # frees the weights before the next cell is loaded
        return pd.concat([outcomes(name, engine, log) for log in logs], ignore_index=True)


def _sha256(task: Task) -> str:
    content = json.dumps([[sample.id, sample.input, sample.target] for sample in task.dataset])
    return hashlib.sha256(content.encode()).hexdigest()


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))
