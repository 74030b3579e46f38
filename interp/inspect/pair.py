"""Whether two checkpoints are a baseline and a quantization of it, and why not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from interp.checkpoint import Checkpoint
from interp.errors import InputError
from interp.inspect.wording import lines
from interp.pairs.weight_error import check_pair


@dataclass(frozen=True)
class PairSummary:
    """What `check_pair` says of two checkpoints.

    Attributes:
        baseline: path of the first.
        cell: path of the second.
        is_pair: whether the second is a quantization of the first.
        reason: why not, or "".
        swapped: whether they are one the other way round.
        warnings: what the check warns of.
    """

    baseline: str
    cell: str
    is_pair: bool
    reason: str
    swapped: bool
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        if self.is_pair:
            verdict = "yes: the second is a quantization of the first"
        else:
            verdict = "no, but the other way round: the first is a quantization of the second" if self.swapped else "no"
        entries = [("a pair", verdict), *([("", self.reason)] if self.reason and not self.swapped else [])]
        entries += [("warning", warning) for warning in self.warnings]
        return "\n".join(line for key, text in entries for line in lines(key, text))


def summarize_pair(baseline: Checkpoint, cell: Checkpoint) -> PairSummary:
    """Check a pair; every tensor of both is read.

    A dense copy of a model is a pair with it in both directions, so only the order that was asked is judged where it
    holds.

    Args:
        baseline: the unquantized one.
        cell: its quantized copy.
    """
    warnings, reason = _checked(baseline, cell)
    swapped = bool(reason) and not cell.has_quantized_linears() and not _checked(cell, baseline)[1]
    return PairSummary(str(baseline.path), str(cell.path), not reason, reason, swapped, warnings)


def _checked(baseline: Checkpoint, cell: Checkpoint) -> tuple[list[str], str]:
    try:
        return check_pair(baseline, cell), ""
    except InputError as error:
        return [], str(error)
