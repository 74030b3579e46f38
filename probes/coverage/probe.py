"""Measure whether calibration covers harmful prompts: errors of linears there, and on the calibration texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp.chat import AnyTemplate
from interp.errors import InputError
from interp.model import HookedModel
from interp.pairs.alignment import aligned
from interp.pairs.weight_path import block_linears, oriented_weight
from interp.quantize.calibration import token_rows
from interp.quantize.cells import read_record, text_hash
from interp.streaming.memory import require_in_memory
from probes.coverage.energies import LinearError, energies
from probes.coverage.ratios import Errors, estimate, ratios, relative_errors, together
from probes.coverage.rounding import grid_of, rounded
from probes.harness.comparison import Comparison, Models, compare
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.harness.token_positions import Position, position_classes
from probes.stats.intervals import interval_columns

ALL = "all"
"""The geometric mean over the linears of all blocks."""
COLUMNS = (
    *("cell", "linear", "n", "n_texts", "error_calibration", "error_harmful", "error_harmless"),
    *("ratio", "ratio_low", "ratio_high", "random", "rounded"),
    *("beyond", "beyond_low", "beyond_high", "harmless", "harmless_low", "harmless_high", "reason"),
)
UNCHANGED = "its weight is the baseline's"


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    calibration: Sequence[str],
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> Result:
    """Relative output error of every linear where answers to harmful prompts begin, over that on calibration texts.

    Errors are root mean squares of x(Ŵ − W)ᵀ over those of xWᵀ, x being the baseline's own inputs: of prompts at the
    tokens of the template after the instruction, of calibration texts at all tokens. That inputs differ there moves any
    error; so the ratio stands beside that of errors of the same sizes with random signs, which is exact, and beside
    that of plain rounding. A writer that fits to its calibration lowers the error on it; where harmful prompts are not
    covered, `beyond` is above 1, and above that of harmless prompts.

    Table: one row per cell and linear, and one with the geometric mean over linears ("all"), with columns
        cell, linear; n, n_texts: harmful prompts, calibration texts;
        error_calibration, error_harmful, error_harmless: relative errors;
        ratio (with _low, _high): error_harmful / error_calibration, with a bootstrap interval over prompts and texts;
        random, rounded: the same ratio of errors with random signs, and of plain rounding to the same bits;
        beyond (with _low, _high): ratio / random;
        harmless (with _low, _high): what `beyond` is for harmless prompts;
        reason: why a number is NaN, else "".

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        calibration: the texts that writers were calibrated on, cut where the context ends, as they do; a warning says
            where a cell's record names others.
        template: "auto", "none" (raw text; then the last token counts) or a Jinja file, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: texts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`; no calibration texts; a template that changes the instruction.

    Example:
        >>> cells = Cells({"GPTQ": "path/to/model-GPTQ"}, baseline)
        >>> texts = calibration_of(Path("path/to/model"))
        >>> coverage.measure(baseline, cells, builtin("harmful"), builtin("harmless"), calibration=texts).table
    """
    if not calibration:
        raise InputError("There are no calibration texts", "those that the writers of the cells were given")
    require_in_memory(baseline, "probes.coverage")
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
    instructions = {"harmful": harmful.instructions, "harmless": harmless.instructions}
    chosen = {side: _template_end(baseline, texts, instructions[side]) for side, texts in comparison.texts.items()}
    texts = {side: baseline.token_ids(prompts) for side, prompts in comparison.texts.items()}
    texts["calibration"] = _as_writers_read(baseline, calibration)
    chosen["calibration"] = [[True] * len(ids) for ids in texts["calibration"]]

    def look(cell: HookedModel) -> list[dict[str, Any]]:
        linears = _errors(baseline, cell)
        sums = {kind: energies(baseline, linears, texts[kind], chosen[kind], batch_size) for kind in texts}
        errors = {kind: relative_errors(sums[kind], seed) for seed, kind in enumerate(sums)}
        return list(_rows(list(linears), errors, {kind: len(texts[kind]) for kind in texts}))

    rows = comparison.observe_cells(look)
    comparison.warnings += _other_texts(comparison, calibration)
    settings = {"calibration": {"n": len(calibration), "sha256": text_hash(calibration)}}
    result = comparison.result("coverage", [{"cell": cell, **row} for cell in rows for row in rows[cell]], **settings)
    result.table = result.table.reindex(columns=list(COLUMNS))
    return result


def _as_writers_read(baseline: HookedModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of calibration texts, which every writer cuts where the context ends."""
    rows = token_rows(baseline.tokenizer, texts, getattr(baseline.config, "max_position_embeddings", sys.maxsize))
    baseline.require_known(rows)
    if not all(rows):
        raise InputError(f"Calibration text {rows.index([])} is empty: it has no tokens", do="Leave it out")
    return rows


def _template_end(baseline: HookedModel, texts: Sequence[str], instructions: Sequence[str]) -> list[list[bool]]:
    """Which tokens of each prompt stand after the instruction; the last one where none does."""
    classes = position_classes(baseline.tokenizer, texts, instructions)
    after = [[each is Position.END for each in tokens] for tokens in classes]
    return [ends if any(ends) else [*ends[:-1], True] for ends in after]


def _errors(baseline: HookedModel, cell: HookedModel) -> dict[str, LinearError]:
    """The error of every linear, rescaling undone."""
    errors = {}
    with aligned(cell, baseline):
        for name in block_linears(baseline):
            weight = oriented_weight(baseline, name).float()
            error = oriented_weight(cell, name).to(weight) - weight
            errors[name] = LinearError(weight, error, rounded(weight, *grid_of(cell.checkpoint, name)) - weight)
    return errors


def _rows(linears: Sequence[str], errors: Mapping[str, Errors], n: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    harmful, harmless = (ratios(errors[side], errors["calibration"]) for side in ("harmful", "harmless"))
    counts = {"n": n["harmful"], "n_texts": n["calibration"]}

    def row(linear: str, of: Any) -> dict[str, Any]:
        levels = {f"error_{kind}": float(of(draws[:, :, 1])[0]) for kind, draws in errors.items()}
        unchanged = not np.nan_to_num(levels["error_calibration"])
        return {
            **{"linear": linear, **counts, **levels},
            **interval_columns("ratio", estimate(of(harmful["error"]), counts["n"])),
            "random": float(of(harmful["random"])[0]),
            "rounded": float(of(harmful["rounded"])[0]),
            **interval_columns("beyond", estimate(of(harmful["beyond"]), counts["n"])),
            **interval_columns("harmless", estimate(of(harmless["beyond"]), n["harmless"])),
            "reason": UNCHANGED if unchanged else "",
        }

    yield row(ALL, together)
    for place, linear in enumerate(linears):
        yield row(linear, lambda draws, place=place: draws[:, place])


def _other_texts(comparison: Comparison, calibration: Sequence[str]) -> Iterator[str]:
    """Cells whose records name other texts."""
    ours = text_hash(calibration)
    for name in comparison.cells:
        described = comparison.settings["cells"][name]
        record = None if described is None else read_record(Path(described["path"]))
        theirs = None if record is None else record.settings.get("calibration_sha256")
        if theirs not in (None, ours):
            yield f"{name}: it was calibrated on other texts than these, so the ratio is not of its own calibration"
