"""Reading a run folder: the matrix of its cells, the tables of each model, the study file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from interp.documents import read_json, read_text
from interp.errors import InputError, what_lies_beside
from probes.harness.names import BASELINE
from probes.harness.results import Result, read_result
from probes.labels.outcomes import ANSWERS
from probes.labels.refused import AGAIN, check_completions, counted_by
from probes.matrix.regimes import STUDY, RegimeRule
from probes.report.answers import holds_answers, run_of_answers
from probes.report.losses import Loss, losses

MATRIX = "matrix"
REQUIRED = ("model", "cell", "outcome", "refusal_rate", "refusal_rate_delta", "n_total", "regime", "action")
"""Columns without which there is nothing to report."""
HOW = "Write a run with `python -m probes.study run` or `python -m probes.refusal --out DIR`"


@dataclass(frozen=True)
class Run:
    """Everything that one run measured.

    Attributes:
        path: the folder.
        tables: results of the whole run by probe, the matrix among them.
        models: model → its results by probe.
        study: the study file's text, or "".
        state: what the study recorded about its steps (study.json), or nothing.
        versions: package → the versions that the results were measured with, usually one.
    """

    path: Path
    tables: Mapping[str, Result]
    models: Mapping[str, Mapping[str, Result]]
    study: str
    state: Mapping[str, Any]
    versions: Mapping[str, list[str]]

    @property
    def matrix(self) -> pd.DataFrame:
        """A row per cell of every model."""
        return self.tables[MATRIX].table

    @cached_property
    def cells(self) -> pd.DataFrame:
        """The matrix without the baselines."""
        return self.matrix[self.matrix["cell"] != BASELINE]

    @cached_property
    def losses(self) -> list[Loss]:
        """What happened to each cell's refusals, the worst first; see `probes.report.losses`."""
        return losses(self)

    @property
    def counted_by(self) -> str:
        """Who decided what is a refusal in every rate of the run: "broader lexicon", "judge NAME"."""
        return counted_by(self.matrix)

    @property
    def title(self) -> str:
        """What the run is called: its folder."""
        return self.path.resolve().name

    def place(self, model: str) -> int:
        """A model's number, 0-based, which may stand in an attribute whatever the model is called."""
        return list(self.models).index(model)

    def anchor(self, model: str, cell: str) -> str:
        """What the ids of a cell's parts of the page end with, whatever model and cell are called."""
        return f"{self.place(model)}-{self.cell_names(model).index(cell)}"

    @property
    def several(self) -> bool:
        """Whether there is more than one model."""
        return len(self.models) > 1

    @property
    def rule(self) -> RegimeRule:
        """The thresholds that the regimes were told apart with."""
        return RegimeRule(**self.tables[MATRIX].settings.get("thresholds", STUDY.describe()["thresholds"]))

    def table(self, model: str, probe: str) -> pd.DataFrame | None:
        """A model's table of one probe; None where it was not measured or has no rows."""
        result = self.models[model].get(probe)
        return None if result is None or result.table.empty else result.table

    def cell_names(self, model: str) -> list[str]:
        """A model's cells without the baseline, most bits per weight first where known."""
        rows = self.cells[self.cells["model"] == model]
        if "bits_per_weight" in rows:
            rows = rows.sort_values("bits_per_weight", ascending=False, kind="stable")
        return [str(cell) for cell in rows["cell"]]


def read_run(path: Path) -> Run:
    """Read a folder that `probes.demo`, `probes.study` or `probes.refusal` wrote.

    Raises:
        InputError: no such folder, neither a matrix nor answers in it, a damaged or older file, a matrix without the
            report's columns.
    """
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise InputError(f"The run {path} {problem}", "a run's folder", what_lies_beside(path) or HOW)
    if holds_answers(path):
        name, matrix, own = run_of_answers(path, _results(path))
        return Run(path, {MATRIX: matrix}, {name: own}, "", {}, _versions([path]))
    if not (path / f"{MATRIX}.json").is_file():
        raise InputError(
            f"{path} holds neither {MATRIX}.json nor {ANSWERS}.parquet, so it is no run, or an unfinished one",
            "a finished run",
            HOW,
        )
    return _read_study(path)


def _read_study(path: Path) -> Run:
    tables = _results(path)
    matrix = tables[MATRIX].table
    _check(path, matrix)
    names = [str(name) for name in matrix["model"].drop_duplicates()]
    folders = {name: _folder(path, name) for name in names}
    models = {name: _results(folder) if folder else {} for name, folder in folders.items()}
    for name, results in models.items():
        if "completions" in results:
            check_completions(results["completions"].table, f"{path / name / 'completions.json'}")
    study, state = path / "study.toml", path / "study.json"
    return Run(
        path,
        tables,
        models,
        read_text(study) if study.is_file() else "",
        _document(state) if state.is_file() else {},
        _versions([path, *(folder for folder in folders.values() if folder)]),
    )


def _check(path: Path, matrix: pd.DataFrame) -> None:
    missing = [column for column in REQUIRED if column not in matrix]
    if missing or matrix.empty:
        problem = f"The matrix of {path} " + (f"has no column {', '.join(missing)}" if missing else "has no rows")
        do = AGAIN if missing == ["outcome"] else "Measure the run again"
        raise InputError(problem, "a row per cell as this version writes it", do)
    twice = matrix.duplicated(["model", "cell"])
    if twice.any():
        row = matrix[twice].iloc[0]
        raise InputError(f"The matrix of {path} holds {row['model']} {row['cell']} twice", "one row per cell")


def _folder(path: Path, model: str) -> Path | None:
    """The model's folder; only inside the run, whatever the model is called."""
    folder = path / model
    inside = folder.resolve().is_relative_to(path.resolve()) and folder.resolve() != path.resolve()
    return folder if inside and folder.is_dir() else None


def _results(folder: Path) -> dict[str, Result]:
    """All results in a folder by probe; other JSON files are passed over."""
    results = {}
    for document in sorted(folder.glob("*.json")):
        if document.with_suffix(".parquet").exists() or "probe" in _document(document):
            results[document.stem] = read_result(document)
    return results


def _versions(folders: Iterable[Path]) -> dict[str, list[str]]:
    by_package: dict[str, dict[str, None]] = {}
    for document in (file for folder in folders for file in sorted(folder.glob("*.json"))):
        versions = _document(document).get("versions")
        for package, version in (versions if isinstance(versions, dict) else {}).items():
            by_package.setdefault(str(package), {})[str(version)] = None
    return {package: list(versions) for package, versions in by_package.items()}


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    return document if isinstance(document, dict) else {}
