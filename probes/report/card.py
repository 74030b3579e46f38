"""A paragraph on every cell for its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from probes.harness.names import BASELINE
from probes.harness.results import checkpoints_of
from probes.report.losses import Loss
from probes.report.run import Run, read_run
from probes.stats.intervals import Estimate

ENGINES = {"hooked": "PyTorch on the dequantized weights", "llama.cpp": "llama.cpp"}
"""Engines as a reader of a model card knows them."""


def model_card(path: Path) -> str:
    """Markdown on every cell of a run: rates and changes with intervals and n, who counted, engine, links.

    Args:
        path: the folder that `probes.demo`, `probes.study` or `probes.refusal` wrote.

    Raises:
        InputError: as `probes.report.files.write`.

    Example:
        >>> print(model_card(Path("runs/demo")))
    """
    from probes.report.page import fill

    run = read_run(path)
    return fill("card.md", run=run, cells=[_facts(run, loss) for loss in run.losses])


def _facts(run: Run, loss: Loss) -> dict[str, Any]:
    rows = run.matrix[(run.matrix["model"] == loss.model) & (run.matrix["cell"] == BASELINE)]
    matrix = run.tables["matrix"].settings.get(loss.model)
    settings = matrix if isinstance(matrix, Mapping) else {}
    engine = str(settings.get("engine", ""))
    return {
        "loss": loss,
        "rate": _rate(loss.row, "refusal_rate"),
        "reference": _rate(rows.iloc[0], "refusal_rate") if len(rows) else None,
        "over": _rate(loss.row, "over_refusal_rate"),
        "engine": loss.engines or ENGINES.get(engine, engine),
        "dtype": settings.get("dtype", ""),
        "metric": loss.row.get("quality_metric", ""),
        "sha256": _sha256(settings, loss.cell),
    }


def _rate(row: pd.Series, name: str) -> Estimate | None:
    """A rate with Wilson's bounds; None where it was not measured."""
    value = row.get(name)
    if pd.isna(value):
        return None
    low, high = (float(row.get(f"{name}_{end}", float("nan"))) for end in ("low", "high"))
    return Estimate(float(value), low, high)


def _sha256(settings: Mapping[str, Any], cell: str) -> str:
    return str(checkpoints_of(settings)[1].get(cell, {}).get("sha256", ""))
