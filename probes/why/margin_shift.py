"""How far a cell's refusal margin moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interp.model import HookedModel
from probes.harness.pieces import kept
from probes.margin.refusal_margin import MarginRuns
from probes.stats.intervals import Estimate, mean_interval


@dataclass(frozen=True)
class MarginShift:
    """The refusal margins of a cell beside its baseline's, in nats.

    Attributes:
        n: prompts of each side.
        before: mean margin of harmful prompts in the baseline.
        after: in the cell.
        shift: cell − baseline.
        harmless_shift: the same of harmless prompts.
        to_answer: harmful prompts whose margin was a refusal's and is no longer.
        to_refusal: the other way round.
    """

    n: int
    before: Estimate
    after: Estimate
    shift: Estimate
    harmless_shift: Estimate
    to_answer: int
    to_refusal: int

    @property
    def within_chance(self) -> bool:
        """Whether the interval of the shift includes 0."""
        return not (self.shift.low > 0 or self.shift.high < 0)


def margin_shift(baseline: HookedModel, cell: HookedModel, runs: Mapping[str, MarginRuns]) -> MarginShift:
    """Measure the margins of both models.

    Args:
        baseline: what the cell was quantized from.
        cell: the cell as it is.
        runs: "harmful" and "harmless" → their prompts.
    """
    (before, after), (harmless_before, harmless_after) = kept(
        ["margins of both"],
        lambda: [
            [runs[side].margins(model).double() for model in (baseline, cell)] for side in ("harmful", "harmless")
        ],
    )
    return MarginShift(
        n=len(before),
        before=mean_interval(before),
        after=mean_interval(after),
        shift=mean_interval(after - before),
        harmless_shift=mean_interval(harmless_after - harmless_before),
        to_answer=_crossing(before, after),
        to_refusal=_crossing(after, before),
    )


def _crossing(above: Float[Tensor, " n"], below: Float[Tensor, " n"]) -> int:
    return int(((above > 0) & (below <= 0)).sum())
