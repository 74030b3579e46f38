"""Measure what people look at before they publish a cell: each checkpoint is opened once, nothing is measured twice."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd

from interp.chat import AnyTemplate
from interp.checkpoint import Checkpoint
from interp.errors import Unmeasurable
from interp.generation import BATCH_SIZE, complete, completion_of
from interp.model import HookedModel
from interp.pairs.weight_error import weight_error
from interp.progress import track
from probes.check.stored import PARTS, CheckResult
from probes.drift import probe as drift
from probes.entropy import probe as entropy
from probes.harness.comparison import BASELINE, Comparison, Models, checked, compare, remembering
from probes.harness.prompts import PromptSet
from probes.harness.results import Result, join_cells
from probes.labels.refused import READ_TOKENS
from probes.margin import probe as margin
from probes.margin.openings import baseline_answers
from probes.refusal.ask import outcome_rows

IN_MEMORY = "made in memory, so nothing says that it is a quantization of the baseline"


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> CheckResult:
    """Pair check, weight error, entropy of the first token, refusal margin and answers of every cell.

    Table: one row per cell, with columns
        cell, format, bits_per_weight, path: of the checkpoint;
        pair: what the pair check warns of, "" for nothing;
        weight_error: RMS of the error of all linears' weights / RMS of the baseline's weights, AWQ's rescaling undone;
        reason: why a cell could not be measured, else "".

    Beside it: `check_weights` (the same by kind of linear: cell, linear, n_linears, bits, weight_error), `entropy`,
    `margin`, `refusal` (the answers to the harmful prompts, cut at 48 tokens, as `probes.refusal.ask` gives them) and
    `drift`, each as its own command writes it.

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused; all are answered.
        harmless: requests that should be answered.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.measure`; a cell of which nothing can be measured is a row with the reason.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> check.measure(baseline, cells, builtin("harmful").take(32), builtin("harmless").take(32)).table
    """
    common: dict[str, Any] = {"template": template, "force": force, "batch_size": batch_size}
    started = time.monotonic()
    with remembering():
        comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
        parts = _of_cells(comparison, harmful, harmless, common)
    joined = {name: Result(name, pd.DataFrame({"cell": []}), comparison.settings) for name in PARTS}
    joined |= {name: join_cells([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    joined["drift"] = _drift(joined["refusal"], list(cells))
    rows = [_row(comparison, name, joined) for name in cells]
    warnings = list(
        dict.fromkeys([*comparison.warnings, *(warning for part in joined.values() for warning in part.warnings)])
    )
    return CheckResult(
        "check", pd.DataFrame(rows), comparison.settings, warnings, round(time.monotonic() - started, 3), parts=joined
    )


def _of_cells(
    comparison: Comparison, harmful: PromptSet, harmless: PromptSet, common: dict[str, Any]
) -> list[dict[str, Result]]:
    """The parts of every cell that can be opened; the others go to the comparison's `undefined`."""
    parts = []
    for name in track(list(comparison.cells), "cells"):
        try:
            parts.append(_of_cell(comparison, name, harmful, harmless, common))
        except Unmeasurable as error:
            comparison.undefined[name] = str(error)
    return parts


def _of_cell(
    comparison: Comparison, name: str, harmful: PromptSet, harmless: PromptSet, common: dict[str, Any]
) -> dict[str, Result]:
    """Everything of one cell, opened once."""
    baseline, cell = comparison.baseline, {name: comparison.cells[name]}
    entropies = entropy.measure(baseline, cell, harmful, harmless, **common)
    margins = margin.measure(baseline, cell, harmful, harmless, **common)
    answering = {} if (entropies.table["reason"] != "").any() else cell
    answers = _answers(comparison, answering, harmful, common["batch_size"])
    weights = _weights(name, baseline.checkpoint, cell[name].checkpoint)
    results = [
        Result("check_weights", weights, {}),
        entropies,
        Result("margin", margins.table, margins.settings, margins.warnings),
        *margins.beside,
        Result("refusal", answers, comparison.settings | {"max_new_tokens": READ_TOKENS}),
    ]
    return {result.probe: result for result in results}


def _answers(comparison: Comparison, cells: Models, harmful: PromptSet, batch_size: int | None) -> pd.DataFrame:
    """Outcomes of the harmful prompts; the baseline's answers are those that its refusal openings come from."""
    baseline, texts = comparison.baseline, comparison.texts["harmful"]
    token_ids = baseline.token_ids(texts)
    read = baseline_answers(comparison)[: len(texts)]
    own = [completion_of(baseline.tokenizer, text, answer) for text, answer in zip(texts, read, strict=True)]
    answers = {BASELINE: own}
    answers |= {name: complete(model, texts, READ_TOKENS, batch_size or BATCH_SIZE) for name, model in cells.items()}
    rows = [outcome_rows(name, "refusal", harmful, token_ids, completions) for name, completions in answers.items()]
    return pd.concat(rows, ignore_index=True)


def _drift(answers: Result, cells: list[str]) -> Result:
    """Paired outcomes of the cells that answered; no rows where none did."""
    answered = [name for name in cells if (answers.table["cell"] == name).any()]
    if not answered:
        return Result("drift", pd.DataFrame({"cell": []}), answers.settings)
    return drift.measure(answers.table, BASELINE, answered)


def _weights(name: str, baseline: Checkpoint | None, cell: Checkpoint | None) -> pd.DataFrame:
    """A row per kind of linear, and one of all, in the order of a block."""
    columns = ["cell", "linear", "n_linears", "bits", "weight_error"]
    if baseline is None or cell is None:
        return pd.DataFrame(columns=columns)
    errors = weight_error(baseline, cell)
    names = {linear: _kind(baseline, linear) for linear in baseline.linears()}
    n_inputs = errors["module"].map({linear: baseline.weight_shape(linear)[1] for linear in names})
    squares = pd.DataFrame(
        {
            "linear": errors["module"].map(names),
            "error": n_inputs * errors["rms_error"] ** 2,
            "size": n_inputs * errors["rms_weight"] ** 2,
        }
    )
    bits = pd.DataFrame(
        {"linear": kind, "n_linears": 1, "bits": cell.linear_bits(linear)} for linear, kind in names.items()
    )
    sums = squares.groupby("linear", sort=False)[["error", "size"]].sum()
    table = bits.groupby("linear", sort=False).agg({"n_linears": "sum", "bits": "mean"}).join(sums)
    total = {"n_linears": len(names), "bits": cell.bits_per_weight(), **squares[["error", "size"]].sum()}
    table.loc["all"] = total
    with np.errstate(invalid="ignore"):
        table["weight_error"] = np.sqrt(table["error"] / table["size"])
    return table.reset_index().assign(cell=name, n_linears=table["n_linears"].astype(int).to_numpy())[columns]


def _kind(checkpoint: Checkpoint, linear: str) -> str:
    """A linear's name without its block: "mlp.up_proj"."""
    return linear.removeprefix(f"{checkpoint.architecture.blocks}.").partition(".")[2]


def _row(comparison: Comparison, name: str, parts: dict[str, Result]) -> dict[str, Any]:
    described = comparison.settings["cells"][name] or {}
    if name in comparison.undefined:
        about, reason = {}, comparison.undefined[name]
    else:
        entropies, weights = (parts[part].table for part in ("entropy", "check_weights"))
        reason = entropies.loc[entropies["cell"] == name, "reason"].iloc[0]
        about = dict(next(weights[(weights["cell"] == name) & (weights["linear"] == "all")].iterrows(), ("", {}))[1])
    return {
        "cell": name,
        "format": described.get("format", ""),
        "bits_per_weight": float(about.get("bits", np.nan)),
        "path": described.get("path", ""),
        "pair": _pair(comparison, name),
        "weight_error": float(about.get("weight_error", np.nan)),
        "reason": reason,
    }


def _pair(comparison: Comparison, name: str) -> str:
    """What the pair check, which `compare` has made, warned of."""
    checkpoints = getattr(comparison.cells, "checkpoints", {})
    cell = checkpoints[name] if name in checkpoints else comparison.cells[name].checkpoint
    if comparison.baseline.checkpoint is None or cell is None:
        return IN_MEMORY
    return "; ".join(checked(comparison.baseline.checkpoint, cell, comparison.settings["force"]))
