"""The most damaged safety units, with the weight errors on both sides of them."""

from __future__ import annotations

from typing import Any

from probes.report.run import Run

SHOWN = 10
"""Units per cell."""
KINDS = {"resid": "dimension", "mlp": "neuron", "head": "head"}


def build(run: Run) -> list[dict[str, Any]] | None:
    """Per model, cells with their most damaged units; the cell that lost most refusals first."""
    order = [(loss.model, loss.cell) for loss in run.losses]
    blocks = []
    for model in run.models:
        units = run.table(model, "safety_units")
        if units is None:
            continue
        cells = [cell for name, cell in order if name == model and (units["cell"] == cell).any()]
        tables = []
        for cell in cells:
            rows = units[(units["cell"] == cell) & units["normalized_error"].notna()]
            worst = rows.nlargest(SHOWN, "normalized_error")
            records = [
                row | {"kind": KINDS.get(str(row["site"]), str(row["site"]))} for row in worst.to_dict("records")
            ]
            tables.append({"cell": cell, "units": records, "n": len(rows)})
        if tables:
            blocks.append({"model": model, "cells": tables})
    return blocks or None
