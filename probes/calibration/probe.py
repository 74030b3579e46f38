"""Measure confidence: top-1 and top-5 probability, Gini impurity, logit range and ECE of the first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.chat import AnyTemplate
from interp.errors import InputError
from interp.model import HookedModel
from probes.harness.comparison import Models, compare, require_models
from probes.harness.first_token import first_token, first_token_reads
from probes.harness.names import BASELINE
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.labels.refused import by_cell, refused
from probes.stats import intervals
from probes.stats.intervals import mean_interval, rate_interval

BINS = 10


@dataclass(frozen=True)
class Confidence:
    """Per prompt, from the distribution p of its first answer token.

    Attributes:
        token: the most probable token.
        top1: its probability.
        top5: summed probability of the five most probable tokens.
        gini: Gini impurity 1 − Σp².
        logit_range: largest − smallest logit.
    """

    token: Int[Tensor, " prompt"]
    top1: Float[Tensor, " prompt"]
    top5: Float[Tensor, " prompt"]
    gini: Float[Tensor, " prompt"]
    logit_range: Float[Tensor, " prompt"]


def confidence(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt 5"]:
    """The five numbers of `Confidence` in its order, [prompt, vocab] → [prompt, 5], in float64."""
    logits = logits.double()
    probabilities = logits.softmax(-1)
    largest = probabilities.topk(min(5, logits.shape[-1])).values
    return torch.stack(
        [
            logits.argmax(-1).double(),
            largest[:, 0],
            largest.sum(-1),
            1 - (probabilities**2).sum(-1),
            logits.amax(-1) - logits.amin(-1),
        ],
        dim=-1,
    )


def expected_calibration_error(
    probability: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = BINS
) -> float:
    """Σ over bins (share of the n) · |rate of correct − mean probability|; Guo et al. 2017, arXiv:1706.04599.

    Args:
        probability: of each prediction, in [0, 1].
        correct: whether the prediction was right.
        bins: number of equal-width bins, open below and closed above.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    probability = probability.double().contiguous()
    gap = correct.double() - probability
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, torch.bucketize(probability, edges), gap)
    return float(sums.abs().sum() / len(gap))


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    refusals: Mapping[str, Sequence[bool | None]] | None = None,
    outcome: str = "",
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> Result:
    """First-token confidence and its calibration (arXiv:2606.10154, probe 3), per cell and prompt set.

    Table: one row per (cell, prompts), the baseline's first, with columns
        cell, prompts, n: "baseline" or the cell's name; "harmful" or "harmless"; number of prompts;
        top1, top5, gini, logit_range: means over prompts of the numbers of `Confidence`;
        confidence_shift, confidence_shift_low, confidence_shift_high: mean of cell − baseline top-1 probability, and
            its paired 95 % t interval;
        agreement, agreement_low, agreement_high: share of prompts whose most probable token is the baseline's, and
            Wilson's 95 % interval;
        ece_fidelity: calibration error of the top-1 probability where correct = agreeing with the baseline;
        ece_refusal: the same where correct = the completion refuses; over the harmful prompts whose completion is
            scored, NaN without any;
        reason: why a number of the row other than ece_refusal is NaN, else "".

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        refusals: cell (or "baseline") → whether its completion of each harmful prompt refuses; None where that is
            unscored.
        outcome: who says so, for the settings: "broader lexicon", "judge NAME".
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`; a cell's refusals are not as many as the harmful prompts.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> calibration.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    require_models(baseline, cells)
    _check_refusals(refusals or {}, len(harmful.instructions), {BASELINE, *cells})
    comparison = compare(
        baseline, cells, harmful, harmless, template=template, force=force, reads=first_token_reads(batch_size)
    )

    def observe(model: HookedModel) -> dict[str, Confidence]:
        return {side: _observe(model, texts, batch_size) for side, texts in comparison.texts.items()}

    observed = comparison.observe(observe, "calibration")
    rows = [
        _row(cell, side, values, observed[BASELINE][side], (refusals or {}).get(cell) if side == "harmful" else None)
        for cell, sides in observed.items()
        for side, values in sides.items()
    ]
    return comparison.result("calibration", rows, bins=BINS, outcome=outcome)


def _check_refusals(refusals: Mapping[str, Sequence[bool | None]], n_harmful: int, cells: set[str]) -> None:
    unknown = sorted(set(refusals) - cells)
    if unknown:
        raise InputError(f"There are refusals of {unknown[0]!r}", f"only of {', '.join(sorted(cells))}")
    for cell, outcomes in refusals.items():
        if len(outcomes) != n_harmful:
            raise InputError(f"{cell} has {len(outcomes)} refusal outcomes", f"{n_harmful}, one per harmful prompt")


def _observe(model: HookedModel, texts: Sequence[str], batch_size: int | None) -> Confidence:
    token, *numbers = first_token(model, texts, confidence, batch_size).unbind(-1)
    return Confidence(token.long(), *numbers)


def _row(
    cell: str, side: str, values: Confidence, reference: Confidence, refusals: Sequence[bool | None] | None
) -> dict[str, Any]:
    agrees = values.token == reference.token
    return {
        "cell": cell,
        "prompts": side,
        "n": len(agrees),
        **{name: float(getattr(values, name).mean()) for name in ("top1", "top5", "gini", "logit_range")},
        **intervals.interval_columns("confidence_shift", mean_interval(values.top1 - reference.top1)),
        **intervals.interval_columns("agreement", rate_interval(agrees)),
        "ece_fidelity": expected_calibration_error(values.top1, agrees),
        "ece_refusal": nan if refusals is None else _against_refusals(values.top1, refusals),
        "reason": "",
    }


def _against_refusals(probability: Float[Tensor, " n"], refusals: Sequence[bool | None]) -> float:
    scored = [place for place, outcome in enumerate(refusals) if outcome is not None]
    if not scored:
        return nan
    return expected_calibration_error(probability[scored], torch.tensor([bool(refusals[place]) for place in scored]))


def refusals_from(outcomes: pd.DataFrame, harmful: PromptSet) -> dict[str, list[bool | None]]:
    """Cell → whether it refused each harmful prompt (None: unscored), from outcomes that are decided.

    Raises:
        InputError: a column is missing, or a cell has no answer to one of the prompts.
    """
    if unknown := [name for name in ("cell", "prompt", "label") if name not in outcomes]:
        raise InputError(f"The outcomes have no column {', '.join(unknown)}", "what probes.refusal wrote")
    asked = outcomes[outcomes["prompt"].isin(harmful.instructions)]
    cell_outcomes = by_cell(asked.assign(prompts="harmful", refused=refused(asked["label"])))
    lacking = {prompt for outcome in cell_outcomes.values() for prompt in harmful.instructions if prompt not in outcome}
    if lacking or not cell_outcomes:
        raise InputError(
            f"The outcomes lack answers to {len(lacking) or len(harmful.instructions)} harmful prompts",
            f"an answer of every cell to each of the {len(harmful.instructions)} of {harmful.name}",
            "Run probes.refusal on the same prompts",
        )
    ordered = {cell: [outcome[prompt] for prompt in harmful.instructions] for cell, outcome in cell_outcomes.items()}
    return {cell: [None if pd.isna(one) else bool(one) for one in outcome] for cell, outcome in ordered.items()}
