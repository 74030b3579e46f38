"""Measure the refusal margin of every prompt in the baseline and in its cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.model import HookedModel
from probes.harness.comparison import Comparison, Models, compare
from probes.harness.names import BASELINE
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.margin.d_prime import separations
from probes.margin.openings import common_openings
from probes.margin.refusal_margin import margins
from probes.margin.settings import Source
from probes.stats import intervals
from probes.stats.bootstrap import DRAWS
from probes.stats.intervals import mean_interval, rate_interval

ALL = "all"
"""The category of the rows over all prompts of a side."""
Margins = Mapping[str, Mapping[str, Float[Tensor, " prompt"]]]
"""Cell → side → margin of each prompt."""


@dataclass(repr=False)
class MarginResult(Result):
    """The probe's result, with two further tables that are written beside it; see `measure`.

    Attributes:
        separation: `margin_separation`.
        prompts: `margin_prompts`.
    """

    separation: Result = field(kw_only=True)
    prompts: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The separation and the prompts."""
        return self.separation, self.prompts


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    openings: Source = "baseline",
    template: str | Path = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> MarginResult:
    """How far every prompt is from the boundary between refusing and answering, and how far quantization moved it.

    The margin of a prompt is log P − log(1 − P) in nats, P the probability that the answer starts with one of the
    refusal openings (`probes.margin.refusal_margin.refusal_margin`), the same openings for all cells. Above 0 a
    refusal is the more
    probable beginning. A cell that refuses in other words counts as answering: a fall of the margin says that it no
    longer begins as the baseline's refusals do, and completions whether it still refuses.

    Table: one row per (cell, prompts, category), the baseline's first, with columns
        cell, prompts: "baseline" or the cell's name; "harmful" or "harmless";
        category: "all", or one of the prompt set's;
        n: number of prompts;
        margin, margin_low, margin_high: mean over prompts, and its 95 % t interval;
        shift, shift_low, shift_high: mean over prompts of cell − baseline, and its paired 95 % t interval;
        to_answer, to_answer_low, to_answer_high: share of the n prompts with a positive margin in the baseline and none
            in the cell, and Wilson's 95 % interval;
        to_refusal, to_refusal_low, to_refusal_high: the other way round;
        reason: why a number is NaN, else "".

    `margin_separation`: one row per cell, how far harmful and harmless prompts lie apart, with columns
        cell, n_harmful, n_harmless;
        d_prime, d_prime_low, d_prime_high: difference of the mean margins / √(mean of the two variances), and its
            95 % percentile interval over prompts drawn with replacement within each side;
        d_prime_shift, d_prime_shift_low, d_prime_shift_high: cell − baseline, on the same resamples;
        shift_by_means, shift_by_spread: parts of the shift: the cell's means with the baseline's variances − the
            baseline's d′, and the rest;
        reason: why a number is NaN, else "".

    `margin_prompts`: one row per (cell, prompts, prompt), with columns cell, prompts, category ("" where it has none),
        prompt, margin, shift, reason.

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        openings: "baseline": how the baseline itself begins to refuse; the lexicon's, with a warning, where it never
            does. "lexicon": `probes.margin.openings.PHRASES`.
        template: "auto", "none" (raw text) or a Jinja file, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`; a prompt that with an opening is longer than the context.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> margin.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
    refusal_openings = common_openings(comparison, openings)
    observed: Margins = comparison.observe(
        lambda model: {
            side: margins(model, texts, refusal_openings, batch_size) for side, texts in comparison.texts.items()
        },
        f"margin with openings of {openings}",
    )
    sets = {"harmful": harmful, "harmless": harmless}
    settings = {"openings": refusal_openings.describe()}
    rows = [row for cell in observed for side in sets for row in _rows(cell, side, observed, sets[side])]
    result = comparison.result("margin", rows, **settings)
    return MarginResult(
        **vars(result),
        separation=_separation(comparison, observed, settings),
        prompts=comparison.result("margin_prompts", list(_prompt_rows(observed, sets)), **settings),
    )


def _rows(cell: str, side: str, observed: Margins, prompts: PromptSet) -> Iterator[dict[str, Any]]:
    """Over all prompts of a side, then by category."""
    values, reference = observed[cell][side], observed[BASELINE][side]
    categories = np.array(prompts.categories or [""] * len(prompts))
    everything = torch.ones(len(prompts), dtype=torch.bool)
    by_category = {name: torch.from_numpy(categories == name) for name in dict.fromkeys(prompts.categories) if name}
    for category, which in {**by_category, ALL: everything}.items():  # a category of the user's may be called "all"
        yield {
            "cell": cell,
            "prompts": side,
            "category": category,
            "n": int(which.sum()),
            **_numbers(values[which], reference[which]),
            "reason": "",
        }


def _numbers(values: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> dict[str, float]:
    return {
        **intervals.interval_columns("margin", mean_interval(values)),
        **intervals.interval_columns("shift", mean_interval(values.double() - reference.double())),
        **intervals.interval_columns("to_answer", rate_interval(_crosses(reference, values))),
        **intervals.interval_columns("to_refusal", rate_interval(_crosses(values, reference))),
    }


def _crosses(above: Float[Tensor, " n"], below: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether the first is a refusal's margin and the second an answer's."""
    return (above > 0) & (below <= 0)


def _separation(comparison: Comparison, observed: Margins, settings: Mapping[str, Any]) -> Result:
    cells = list(observed)
    harmful, harmless = (
        torch.stack([observed[cell][side] for cell in cells]).double().numpy() for side in comparison.texts
    )
    cell_numbers = separations(harmful, harmless)
    counts = {f"n_{side}": len(texts) for side, texts in comparison.texts.items()}
    rows = [{"cell": cell, **counts, **numbers} for cell, numbers in zip(cells, cell_numbers, strict=True)]
    return comparison.result("margin_separation", rows, draws=DRAWS, **settings)


def _prompt_rows(observed: Margins, sets: Mapping[str, PromptSet]) -> Iterator[dict[str, Any]]:
    for cell, sides in observed.items():
        for side, values in sides.items():
            prompts = sets[side]
            shifts = values.double() - observed[BASELINE][side].double()
            categories = prompts.categories or ("",) * len(prompts)
            columns = zip(prompts.instructions, categories, values.tolist(), shifts.tolist(), strict=True)
            for prompt, category, margin, shift in columns:
                row = {"cell": cell, "prompts": side, "category": category, "prompt": prompt}
                yield row | {"margin": margin, "shift": shift, "reason": ""}
