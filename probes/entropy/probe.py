"""Measure the entropy of the first token's distribution over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.chat import AnyTemplate
from interp.model import HookedModel
from probes.harness.comparison import Models, compare
from probes.harness.first_token import first_token, first_token_reads
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.stats import intervals
from probes.stats.intervals import mean_interval


def entropy(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Shannon entropy −Σ p·ln p of softmax(logits), in nats: [*batch, vocab] → [*batch], computed in float64."""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1)


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> Result:
    """Entropy of the first-token distribution (arXiv:2606.10154, probe 1), in nats, per cell and prompt set.

    Table: one row per (cell, prompts), the baseline's first, with columns
        cell, prompts: "baseline" or the cell's name; "harmful" or "harmless";
        n: number of prompts;
        entropy, entropy_low, entropy_high: mean over prompts, and its 95 % t interval;
        shift, shift_low, shift_high: mean over prompts of cell − baseline, and its paired 95 % t interval;
        reason: why a number is NaN, else "".

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: a prompt set is empty or has a prompt longer than the context; a cell does not belong to the
            baseline.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> entropy.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    comparison = compare(
        baseline, cells, harmful, harmless, template=template, force=force, reads=first_token_reads(batch_size)
    )
    entropies = comparison.observe(
        lambda m: {side: first_token(m, texts, entropy, batch_size) for side, texts in comparison.texts.items()},
        "entropy",
    )
    reference = entropies["baseline"]
    rows = [
        _row(cell, side, values, reference[side]) for cell, sides in entropies.items() for side, values in sides.items()
    ]
    return comparison.result("entropy", rows)


def _row(cell: str, side: str, values: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> dict[str, Any]:
    level, shift = mean_interval(values), mean_interval(values - reference)
    return {
        "cell": cell,
        "prompts": side,
        "n": len(values),
        **intervals.interval_columns("entropy", level),
        **intervals.interval_columns("shift", shift),
        "reason": "",
    }
