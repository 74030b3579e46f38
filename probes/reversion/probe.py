"""Measure how far back to the model from before alignment each cell went, against errors with random signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from interp.chat import AnyTemplate
from interp.errors import InputError
from interp.model import HookedModel
from interp.pairs.alignment import aligned
from interp.streaming.memory import require_in_memory
from probes.harness.comparison import Comparison, Models, compare, described
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.harness.silence import require_speech
from probes.reversion.codes import CODES, SameCodes, same_codes
from probes.reversion.projection import ALL, Observed, Place, Projection, observe, projections
from probes.reversion.random_signs import random_signs
from probes.reversion.settings import DRAWS
from probes.stats import intervals
from probes.stats.bootstrap import percentile_interval
from probes.stats.intervals import Estimate
from probes.stats.random_draws import draw_p

COLUMNS = (
    *("cell", "of", "where", "prompts", "n", "back", "back_low", "back_high"),
    *("random", "random_low", "random_high", "p", "reason"),
)
UNMOVED = "alignment moved nothing here"


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    before: HookedModel,
    draws: Annotated[int, Field(ge=1)] = DRAWS,
    seed: int = 0,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> Result:
    """How far back quantization took each cell: the part of its error that undoes what alignment did.

    Projected is cell − baseline on before − baseline: 1 where the cell is back where alignment began, 0 where its error
    has nothing to do with that. The null is the same for the same errors with random signs, weight by weight, in models
    that are run on the same prompts.

    Table: one row per cell and place, with columns
        cell; of: "codes", "weights", "activations" (residual stream at the last token) or "logits" (less their mean);
        where: a linear, a hook point, or "all" (linears of all blocks);
        prompts: "harmful" or "harmless"; "" for codes and weights;
        n: weights, or prompts;
        back, back_low, back_high: the projection, with a bootstrap interval over prompts; of codes the share of weights
            whose code in the cell is that of the unaligned weight in the same format, with no interval;
        random, random_low, random_high: mean and 95 % of the draws of the null; of codes those for imaginary unaligned
            weights, as far from the baseline's as the real ones, with random signs;
        p: one-sided, of `back` among the draws;
        reason: why a number is NaN, else "".

    Args:
        baseline: the unquantized, aligned model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        before: the model that the baseline was aligned from: same shapes, same tokens.
        draws: errors with random signs.
        seed: of the signs.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, for all models.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`; a model from before alignment of other shapes or tokens, or equal
            to the baseline.

    Example:
        >>> cells = Cells({"Q4_0": "path/to/model-Q4_0.gguf"}, baseline)
        >>> before = load("path/to/base-model")
        >>> reversion.measure(baseline, cells, builtin("harmful"), builtin("harmless"), before=before).table
    """
    require_in_memory(baseline, "probes.reversion")
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
    _check_before(before, comparison)
    unaligned = described(before.checkpoint)
    start, end = comparison.of_baseline(
        "beside before",
        lambda: [observe(model, comparison.texts, batch_size) for model in (baseline, before)],
        before=id(before) if unaligned is None else unaligned,
    )
    if not any(projection.squares.sum() for projection in projections(start, start, end).values()):
        raise InputError(
            "The model from before alignment is the baseline itself",
            "another checkpoint",
            "Give the base model that the baseline was fine-tuned from as --before",
        )

    def look(cell: HookedModel) -> list[dict[str, Any]]:
        rows = _code_rows(cell, start, end, draws, seed)
        with aligned(cell, baseline):
            back = projections(observe(cell, comparison.texts, batch_size), start, end)
            null = _null(cell, comparison, start, end, draws, seed, batch_size)
        return rows + [_row(place, projection, null[place]) for place, projection in back.items()]

    rows = comparison.observe_cells(look)
    settings = {"before": unaligned, "draws": draws, "seed": seed}
    result = comparison.result("reversion", [{"cell": cell, **row} for cell in rows for row in rows[cell]], **settings)
    result.table = result.table.reindex(columns=list(COLUMNS))
    return result


def _check_before(before: HookedModel, comparison: Comparison) -> None:
    baseline = comparison.baseline
    ours, theirs = (
        {name: weight.shape for name, weight in model.hf.get_submodule(model.architecture.blocks).named_parameters()}
        for model in (baseline, before)
    )
    if ours != theirs:
        raise InputError(
            "The model from before alignment has other layers than the baseline", "the model that it was aligned from"
        )
    for texts in comparison.texts.values():
        if before.token_ids(texts) != baseline.token_ids(texts):
            raise InputError(
                "The model from before alignment reads the prompts as other tokens than the baseline",
                "the same tokenizer",
                "Give the checkpoint that the baseline was fine-tuned from, with its tokenizer",
            )
    comparison.warnings += [f"before: {warning}" for warning in require_speech(before, comparison.texts)]


def _null(
    cell: HookedModel,
    comparison: Comparison,
    start: Observed,
    end: Observed,
    draws: int,
    seed: int,
    batch_size: int | None,
) -> Mapping[Place, Sequence[float]]:
    """The projections of errors with random signs, a number per draw."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[Place, list[float]] = {}
    for _ in range(draws):
        with random_signs(cell, comparison.baseline, generator):
            back = projections(observe(cell, comparison.texts, batch_size), start, end)
        for place, projection in back.items():
            drawn.setdefault(place, []).append(projection.value)
    return drawn


def _row(place: Place, projection: Projection, null: Sequence[float]) -> dict[str, Any]:
    estimate = projection.estimate()
    return _numbers(place, estimate, null, "" if projection.squares.sum() else UNMOVED)


def _numbers(place: Place, estimate: Estimate, null: Sequence[float], reason: str) -> dict[str, Any]:
    draws = np.array(null)
    mean = float(draws.mean()) if len(draws) else nan
    return {
        **place._asdict(),
        "n": estimate.n,
        **intervals.interval_columns("back", estimate),
        **intervals.interval_columns("random", percentile_interval(mean, draws)),
        "p": draw_p(estimate.value, draws),
        "reason": reason,
    }


def _code_rows(cell: HookedModel, start: Observed, end: Observed, draws: int, seed: int) -> list[dict[str, Any]]:
    if cell.checkpoint is None:
        return [{"of": CODES, "where": ALL, "prompts": "", "reason": "a model made in memory has no codes"}]
    counted = same_codes(cell.checkpoint, start, end, draws, seed)
    if isinstance(counted, str):
        return [{"of": CODES, "where": ALL, "prompts": "", "reason": counted}]
    return [_code_row(place, counts) for place, counts in counted.items()]


def _code_row(place: Place, counts: SameCodes) -> dict[str, Any]:
    share = Estimate(counts.same / counts.n, n=counts.n)
    return _numbers(place, share, [same / counts.n for same in counts.random], "")
