"""Whether a shift of the margin may be the measurement's own doing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interp.model import HookedModel
from probes.margin.openings import Openings, lexicon_openings
from probes.margin.refusal_margin import margins, other_batch_size
from probes.stats.intervals import Estimate, mean_interval

SAMPLE = 16
"""Prompts that the baseline is measured again on, in batches of another size."""


@dataclass(frozen=True)
class Doubt:
    """What is known of the measurement itself.

    Attributes:
        again: the largest difference of a prompt's margin when the baseline is measured in other batches.
        other_words: the margin's shift by the lexicon's openings instead of the baseline's own.
    """

    again: float
    other_words: Estimate


def doubt_of(
    baseline: HookedModel,
    cell: HookedModel,
    texts: Sequence[str],
    openings: Openings,
    batch_size: int | None = None,
) -> Doubt:
    """Measure the baseline again, and both models by other openings.

    Args:
        baseline: what the cell was quantized from.
        cell: the cell.
        texts: rendered harmful prompts.
        openings: that the shift was measured with.
        batch_size: prompts per pass.
    """
    sample = texts[:SAMPLE]
    sizes = (batch_size, other_batch_size(batch_size))
    together, again = (margins(baseline, sample, openings, size).double() for size in sizes)
    lexicon = lexicon_openings(baseline.tokenizer)
    before, after = (margins(model, texts, lexicon, batch_size).double() for model in (baseline, cell))
    return Doubt(float((together - again).abs().max()), mean_interval(after - before))
