"""Measure the refusal margin of every prompt in the baseline and in its cells, and what its shift should cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.chat import AnyTemplate
from interp.model import HookedModel
from interp.passes import Pass
from probes.harness.comparison import Comparison, Models, compare
from probes.harness.names import BASELINE
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.margin.d_prime import separations
from probes.margin.losses import losses
from probes.margin.noise_law import NoiseLaw
from probes.margin.openings import baseline_refusals, common_openings, refuses_in
from probes.margin.refusal_margin import MarginRuns, margins, other_batch_size
from probes.margin.settings import Source
from probes.stats import intervals
from probes.stats.bootstrap import DRAWS
from probes.stats.intervals import mean_interval, rate_interval

ALL = "all"
"""The category of the rows over all prompts of a side."""
AGAIN = 32
"""Harmful prompts whose margins the baseline is asked again."""
Margins = Mapping[str, Mapping[str, Float[Tensor, " prompt"]]]
"""Cell → side → margin of each prompt."""


class _Observed(NamedTuple):
    margins: dict[str, Float[Tensor, " prompt"]]
    refused: Bool[np.ndarray, " prompt"] | None


@dataclass(repr=False)
class MarginResult(Result):
    """The probe's result, with four further tables that are written beside it; see `measure`.

    Attributes:
        separation: `margin_separation`.
        prompts: `margin_prompts`.
        losses: `margin_losses`.
        reliability: `margin_reliability`.
    """

    separation: Result = field(kw_only=True)
    prompts: Result = field(kw_only=True)
    losses: Result = field(kw_only=True)
    reliability: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The further tables."""
        return self.separation, self.prompts, self.losses, self.reliability


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    openings: Source = "baseline",
    answers: bool = False,
    template: AnyTemplate = "auto",
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

    `margin_losses`: refusals that a cell should lose by the margin–noise law (`probes.margin.noise_law`), one row per
        cell and what the law was fitted on, with columns
        cell, fitted_on: "harmful": the prompts of the other half that the baseline refuses; "harmless": all of these;
        n_refused: harmful prompts that the baseline refuses;
        n: those of them whose margin is above the threshold, which the law is about;
        threshold: margin above which the baseline refuses, in nats, mean of the two halves' (0 with the lexicon's
            openings, whose refusals are positive margins);
        shift, spread: μ and σ of the law, in nats, means of the two halves';
        by_noise: prompts that the baseline would lose to itself, by its margins in other batches;
        expected_lost, expected_lost_low, expected_lost_high: prompts that the law says are lost, less by_noise, and
            the bounds between which 95 of 100 draws of the law lie, μ and σ being as unsure as the prompts leave them;
        observed_by: "margins": a prompt is lost whose margin falls below the threshold; "answers" where asked for;
        lost: prompts of the n that were lost;
        calibration_error: expected calibration error (ECE) of the n probabilities, in bins of a tenth;
        reason: why a number is NaN, else "".

    `margin_reliability`: the curve behind that error, one row per (cell, fitted_on, bin), with columns cell, fitted_on,
        observed_by, bin_low, bin_high, n, predicted (mean probability), observed, observed_low, observed_high (share
        lost and Wilson's 95 % interval), reason.

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        openings: "baseline": how the baseline itself begins to refuse; the lexicon's, with a warning, where it never
            does. "lexicon": `probes.margin.openings.PHRASES`.
        answers: generate every cell's answers to harmful prompts, too, and count as lost what is no refusal any more.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
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
    refused = baseline_refusals(comparison, openings)
    few = comparison.texts["harmful"][:AGAIN]

    def reads(model: HookedModel, texts: Mapping[str, list[str]]) -> Iterator[Pass]:
        asked = [(side, batch_size) for side in texts.values()]
        asked += [(few, other_batch_size(batch_size))] if model is baseline else []
        for side, size in asked:
            yield from MarginRuns.of(model, side, refusal_openings, size).passes(model)

    comparison.reads = reads
    baseline.expect(reads(baseline, comparison.texts))

    def look(model: HookedModel) -> _Observed:
        texts = comparison.texts
        values = {side: margins(model, texts[side], refusal_openings, batch_size) for side in texts}
        return _Observed(values, refuses_in(model, texts["harmful"]) if answers and model is not baseline else None)

    seen = comparison.observe(look, f"margin with openings of {openings}")
    observed: Margins = {cell: values for cell, (values, _) in seen.items()}
    again = comparison.of_baseline(
        "margin again",
        lambda: margins(baseline, few, refusal_openings, other_batch_size(batch_size)),
        openings=openings,
        batch_size=batch_size,
    )
    noise = NoiseLaw.fitted((again - observed[BASELINE]["harmful"][: len(again)]).double().numpy())
    tables = losses(observed, {cell: kinds for cell, (_, kinds) in seen.items()}, refused, noise)
    sets = {"harmful": harmful, "harmless": harmless}
    settings = {"openings": refusal_openings.describe()}
    rows = [row for cell in observed for side in sets for row in _rows(cell, side, observed, sets[side])]
    result = comparison.result("margin", rows, **settings)
    return MarginResult(
        **vars(result),
        separation=_separation(comparison, observed, settings),
        prompts=comparison.result("margin_prompts", list(_prompt_rows(observed, sets)), **settings),
        losses=comparison.result("margin_losses", tables[0], **settings),
        reliability=comparison.result("margin_reliability", tables[1], **settings),
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
