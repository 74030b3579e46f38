"""Measure attribution: every cell's margin shift as shares of layers, modules, heads, neurons and groups."""

from __future__ import annotations

import time
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from interp.chat import AnyTemplate
from interp.errors import Unmeasurable
from interp.model import HookedModel
from interp.progress import bar
from probes.attribution.cell import MarginObjective, attribute_cell, kinds, stratified
from probes.attribution.settings import MAX_STEPS, STEPS, UNITS, Objectives
from probes.attribution.shares import Attribution
from probes.attribution.sign_flips import DRAWS, SignFlips
from probes.attribution.table import COLUMNS, tabulate
from probes.harness.comparison import Models, compare
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.margin.openings import common_openings
from probes.margin.settings import Source


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    objective: Objectives = Objectives.MARGIN,
    openings: Source = "baseline",
    steps: Annotated[int, Field(ge=1)] = STEPS,
    max_steps: Annotated[int, Field(ge=1)] = MAX_STEPS,
    categories: bool = False,
    units: Annotated[int, Field(ge=1)] | None = UNITS,
    group_size: Annotated[int, Field(ge=1)] | None = None,
    draws: Annotated[int, Field(ge=0)] = DRAWS,
    seed: Annotated[int, Field(ge=0)] = 0,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> Result:
    """Which weights' quantization error moved the refusal margin, and by how much.

    The share of a weight is the mean over α of ∂margin/∂W · (Ŵ − W) along W + α(Ŵ − W)
    (`probes.attribution.integrated_gradients`), AWQ's
    rescaling undone. All shares add up to the shift of the margin, margin(cell) − margin(baseline), up to the gap of
    the midpoint rule; steps double until it is under 2 % of the shift or 0.01 nats in every category, up to
    `max_steps`.

    Table: one row per (cell, prompts, category, level, unit), shares as means over prompts in nats, with columns
        cell, prompts: the cell's name; "harmful" or "harmless";
        category: "all", or one of the prompt set's;
        level: see below;
        layer, module, unit, group: which one, 0-based; null where the level has none;
        n: number of prompts;
        attribution, attribution_low, attribution_high: mean share, and its 95 % t interval over prompts; no bounds for
            neurons and groups;
        first_order: Σ g·(Ŵ − W), g the gradient in the baseline: what a linear model of the shift says (category "all"
            alone, as the next three);
        null_sd: standard deviation of first_order if every weight's error had a random sign
            (`probes.attribution.sign_flips`);
        z, p: attribution / null_sd, and the two-sided normal p value;
        shift, shift_low, shift_high: the measured shift, and its paired 95 % t interval (level "total");
        gap: total − shift (level "total");
        reason: why a number is NaN, else "".

    Levels, each a partition of the total or of a part of it; between levels a weight counts again:
        total: all parameters;
        parameter: linear weights, linear biases, norms, the embedding and the unembedding (`module` says which; two
            uses of one parameter where they are tied);
        layer: the linears of a block with their biases; layer and other add up to the total;
        module: each linear with its bias; they add up to their layer;
        other: each parameter outside the blocks' linears, by name; a tied one once;
        head: rows of q, k and v (with biases) and columns of the output projection. Key-value heads that several heads
            share count by equal parts;
        neuron: of the MLP: its gate and up rows (with biases) and its down column;
        neuron_out, neuron_in: rows and columns of each linear's weight: two partitions of the same sum;
        group: neighbours along a row that are quantized together: row `unit`, `group` along the inputs (category "all"
            alone).
    A weight of tied parameters counts as two for `null_sd`. Of neuron_out, neuron_in, group and, by category, neuron
    only the largest shares are kept, see `units`.

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        objective: what is attributed; the refusal margin (`probes.margin.refusal_margin.refusal_margin`).
        openings: as in `probes.margin.measure`.
        steps: of the midpoint rule at first.
        max_steps: at most.
        categories: attribute by category of the prompts, too.
        units: rows per cell, side, category and level of neurons and groups; None for all.
        group_size: weights per group; default the cell's own.
        draws: random sign flips that check the null's variance.
        seed: of these.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> attribution.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
    prompts = stratified(comparison, {"harmful": harmful, "harmless": harmless}, categories)
    refusal_openings = common_openings(comparison, openings)
    frames: list[pd.DataFrame] = []
    told: dict[str, Any] = {}
    with bar("attribution") as show:
        for number, name in enumerate(cells):

            def progress(share: float, number: int = number) -> None:
                show((number + share) / len(cells))

            started = time.monotonic()
            try:
                cell = comparison.cell(name)
                attributed, null = attribute_cell(
                    baseline,
                    cell,
                    prompts,
                    MarginObjective(refusal_openings),
                    steps=steps,
                    max_steps=max_steps,
                    group_size=group_size,
                    draws=draws,
                    seed=seed,
                    batch_size=batch_size,
                    progress=progress,
                )
            except Unmeasurable as error:
                comparison.undefined[name] = str(error)
                continue
            frames.append(tabulate(name, attributed, null, kinds(baseline), units))
            told[name] = describe(attributed, null) | {"seconds": round(time.monotonic() - started, 3)}
            comparison.warnings += [f"{name}: {warning}" for warning in _warnings(attributed)]
    result = comparison.result(
        "attribution",
        [],
        objective=str(objective),
        openings=refusal_openings.describe(),
        attributed=told,
        categories=categories,
        units=units,
        steps=steps,
        max_steps=max_steps,
        draws=draws,
        seed=seed,
    )
    result.table = pd.concat([*frames, result.table], ignore_index=True).reindex(columns=list(COLUMNS))
    return result


def describe(found: Attribution, null: SignFlips) -> dict[str, Any]:
    """How exact an attribution is, for the settings of a result."""
    return {
        "steps": found.steps,
        "largest_gap": found.gap(),
        "complete": found.complete(),
        "largest_gap_of_a_prompt": (found.total - found.shift).abs().max().item(),
        "rescaling_undone": found.undone,
        "end_of_path_minus_cell": found.discrepancy,
        "drawn_variance_over_formula": null.drawn_variance_ratio(),
    }


def _warnings(attribution: Attribution) -> list[str]:
    if attribution.complete():
        return attribution.warnings
    return [
        *attribution.warnings,
        f"after {attribution.steps} steps the parts miss the shift by up to {attribution.gap():.3g} nats: "
        "allow more steps",
    ]
