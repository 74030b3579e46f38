"""A behavioural run: tasks that several subjects answer, kept in one folder from which an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pandas as pd

from interp.documents import read_json_object
from interp.errors import InputError
from interp.files import atomic_file, locked
from interp.progress import counter
from probes.harness.event_loop import outside_notebook, without_loop
from probes.harness.transport import Patience

if TYPE_CHECKING:
    from inspect_ai import Task

    from probes.refusal.subjects import Subject


@dataclass(frozen=True)
class BehaviourRun:
    """What is asked, and where the answers are kept.

    Attributes:
        path: holds run.json and cells/NAME with Inspect's logs.
        tasks: by name.
        max_new_tokens: where an answer is cut.
        connections: requests at once.
        patience: with a server that does not answer.
    """

    path: Path
    tasks: Mapping[str, Task]
    max_new_tokens: int
    connections: int
    patience: Patience = field(default_factory=Patience)

    def texts(self) -> list[str]:
        """Every request of every task."""
        return [str(sample.input) for task in self.tasks.values() for sample in task.dataset]

    def describe(self) -> dict[str, Any]:
        """What determines the answers, but for who answers."""
        tasks = {name: {"n": len(task.dataset), "sha256": _sha256(task)} for name, task in self.tasks.items()}
        return {"tasks": tasks, "max_new_tokens": self.max_new_tokens, "decoding": "greedy"}

    def claim(self, described: dict[str, Any]) -> None:
        """Make the folder this run's, or find that it is already; cells that it does not hold yet are added.

        Raises:
            InputError: it holds another run, or another cell of the same name, with what differs; or it cannot be
                written.
        """
        described = _as_json(described)
        file = self.path / "run.json"
        before = read_json_object(file, "the description of a run, as this command wrote it") if file.exists() else {}
        if not isinstance(before.get("cells", {}), dict):
            raise InputError(f"The cells in {file} are no JSON object", "a folder of this run", "Give another one")
        differing = _differing(before, described) if before else []
        if not differing and (merged := _merged(before, described)) != before:
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps(merged, indent=2))
        if differing:
            raise InputError(
                f"{self.path} holds a run with other settings ({', '.join(differing)} differ, see {file})",
                "the same command, which goes on, or a new folder",
                "Give another one with --out",
            )

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder for this process; see `interp.files.locked`."""
        return locked(self.path, "give another folder with --out")

    def keeps_answers(self) -> bool:
        """Whether some answer of some cell is kept, so that the same command goes on after it."""
        from probes.refusal.inspect_eval import keeps_answers

        return keeps_answers(self.path / "cells")

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
        from probes.refusal.inspect_eval import outcomes, run_cell

        n_requests = sum(len(task.dataset) for task in self.tasks.values())
        with outside_notebook():
            model = subject.model(self.patience, n_requests)
        try:
            with counter(n_requests, name) as advance:
                logs = without_loop(
                    lambda: run_cell(
                        list(self.tasks.values()),
                        model,
                        self.path / "cells" / name,
                        max_new_tokens=self.max_new_tokens,
                        max_connections=self.connections,
                        shuffle=shuffle,
                        finished=advance,
                    )
                )
        finally:
            without_loop(lambda: anyio.run(model.api.aclose))  # frees the weights before the next cell is loaded
        return without_loop(lambda: pd.concat([outcomes(name, engine, log) for log in logs], ignore_index=True))


def _sha256(task: Task) -> str:
    content = json.dumps([[sample.id, sample.input, sample.target] for sample in task.dataset])
    return hashlib.sha256(content.encode()).hexdigest()


def _differing(before: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """What determines the answers and is not as before; cells are compared one by one."""
    known = before.get("cells", {})
    other = [key for key, value in described.items() if key != "cells" and before.get(key) != value]
    return other + [name for name, cell in described.get("cells", {}).items() if known.get(name, cell) != cell]


def _merged(before: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """With the cells of both."""
    if "cells" not in described:
        return described
    return described | {"cells": before.get("cells", {}) | described["cells"]}


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))
