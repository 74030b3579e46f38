"""What `probes.why` found about the cells that lost refusals and what to keep of them, or the command that finds it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from probes.harness.results import checkpoints_of
from probes.labels.refused import BROADER
from probes.report.run import Run
from probes.stats.intervals import interval_of

SHOWN = 6
"""Linears of the attribution."""
PROGRAMS = {
    "gptqmodel_dynamic": ("GPTQModel", "dynamic="),
    "llm_compressor_ignore": ("llm-compressor", "ignore="),
    "llama_cpp_options": ("llama-quantize", ""),
}
"""A form of the list of `probes.why` → the program that takes it, and as what."""


def build(run: Run, model: str) -> dict[str, Any] | None:
    """The cells of a model that were explained, those that lost refusals and were not, and the command for these."""
    lost = [loss.cell for loss in run.losses if loss.model == model and loss.lost_refusals]
    table = run.table(model, "why")
    known = {} if table is None else {str(row["cell"]): row for _, row in table.iterrows()}
    missing = [cell for cell in lost if cell not in known]
    cells = [_cell(run, model, cell, known[cell]) for cell in run.cell_names(model) if cell in known]
    if not cells and not missing:
        return None
    anchors = [(cell, run.anchor(model, cell)) for cell in missing]
    then = command(run, model, missing) if missing else ""
    return {"cells": cells, "missing": anchors, "command": then, "counted_by": BROADER}


def _cell(run: Run, model: str, cell: str, row: pd.Series) -> dict[str, Any]:
    return {
        "cell": cell,
        "anchor": run.anchor(model, cell),
        "row": row,
        "shift": interval_of(row, "shift"),
        "modules": _modules(_rows(run, model, "why_modules", cell)),
        "rivals": [_rival(row) for row in _rows(run, model, "why_explanations", cell).to_dict("records")],
        "keep": _rows(run, model, "why_keep", cell).to_dict("records"),
        "choice": _setting(run, model, "choice").get(cell, ""),
        "forms": list(_forms(_setting(run, model, "forms").get(cell, {}))),
        "rewritten": _rows(run, model, "why_rewrite", cell).to_dict("records"),
    }


def _rival(row: Mapping[Any, Any]) -> dict[str, Any]:
    """An explanation, with the number that speaks for or against it."""
    value = interval_of(row, "value")
    return {str(key): cell for key, cell in row.items()} | {"known": value.value == value.value}


def _rows(run: Run, model: str, probe: str, cell: str) -> pd.DataFrame:
    table = run.table(model, probe)
    return pd.DataFrame() if table is None else table[table["cell"] == cell]


def _modules(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The linears with the largest shares."""
    if table.empty:
        return []
    rows = table[table["level"].isin(["module", "other"]) & table["attribution"].notna()]
    largest = rows.loc[rows["attribution"].abs().nlargest(SHOWN).index]
    return [{str(key): value for key, value in row.items()} for row in largest.to_dict("records")]


def _setting(run: Run, model: str, name: str) -> Mapping[str, Any]:
    setting = run.models[model]["why"].settings.get(name)
    return setting if isinstance(setting, Mapping) else {}


def _forms(forms: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(program, the list as it takes it)."""
    for name, (program, option) in PROGRAMS.items():
        if name in forms:
            value = forms[name]
            yield program, option + json.dumps(value, ensure_ascii=False) if option else shlex.join(map(str, value))


def command(run: Run, model: str, cells: Sequence[str]) -> str:
    """The shell command that explains these cells into the model's folder of the run.

    A path below the current folder or the user's home is told from there: the page is shared. Of another only its two
    last parts are told.
    """
    baseline, described = checkpoints_of(_settings(run, model))
    paths = {cell: str(about.get("path", "")) for cell, about in described.items()}
    quantized = [f"--quantized {shlex.quote(cell)}={portable(paths[cell])}" for cell in cells if paths.get(cell)]
    original = portable(str(baseline.get("path", "")) or "BASELINE")
    return " ".join(["python -m probes.why --baseline", original, *quantized, "--out", portable(str(run.path / model))])


def _settings(run: Run, model: str) -> Mapping[str, Any]:
    """The first settings that describe the cells."""
    matrix = run.tables["matrix"].settings.get(model)
    every = [matrix if isinstance(matrix, Mapping) else {}, *(result.settings for result in run.models[model].values())]
    return next((settings for settings in every if isinstance(settings.get("cells"), Mapping)), {})


def portable(path: str) -> str:
    """A path as a shell reads it, without the folders of this machine."""
    absolute, here, home = Path(path).absolute(), Path.cwd(), Path.home()
    if not Path(path).is_absolute() or absolute.is_relative_to(here):
        return shlex.quote(str(absolute.relative_to(here)) if absolute.is_relative_to(here) else path)
    if absolute.is_relative_to(home):
        return f'"$HOME"/{shlex.quote(str(absolute.relative_to(home)))}'
    return shlex.quote("/".join(["path/to", *absolute.parts[-2:]]))
