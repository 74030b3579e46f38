"""How far refusal training may move an organism's weights, so that what a quantized cell loses has a known cause.

A detector is calibrated on known positives. The weights of the block linears start from the helpful stage and are put
back, after every step of the optimizer, into an interval of their own:

* `Bounded`: no weight moves by more than a share of its own 4-bit step, so that refusals fade as bits fall;
* `Inside`: every weight keeps the code that a writer would give it, so that the cell in that format is, weight by
  weight, the cell of the model before it learned to refuse, and the others are not.

Everything else (embeddings, norms, biases, linears that `where` leaves out) stays where the helpful stage left it.
Inside is the published attack of Egashira et al. 2024 (arXiv:2405.18137) turned into a calibration slide: it is applied
to the embedded organisms alone, as part of their training, and never to a model that somebody brings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import InputError

BLOCK = 32
"""Weights that share a scale in llama.cpp's Q4_0 and Q8_0."""
MARGIN = {"Q4_0": 0.02, "Q8_0": 0.1}
"""Of a step, kept from an interval's edges: more than a later rounding of the weights to float16 can move them."""

Interval = tuple[Float[Tensor, "out in"], Float[Tensor, "out in"]]
"""Lowest and highest value of each weight."""


@dataclass(frozen=True)
class Bounded:
    """No weight moves by more than this share of its own 4-bit step.

    Attributes:
        share: of the step of the weight's Q4_0 block, a sixteenth of twice its largest weight's size.
        where: wildcard over the names of the linears that may move, e.g. `model.layers.3.*` or `*.mlp.down_proj`.
    """

    share: float
    where: str = "*"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 8:
            raise InputError(f"Weights cannot be bounded by {self.share} of a step", "a share above 0 and up to 8")

    def interval(self, weight: Float[Tensor, "out in"]) -> Interval:
        """Of each weight, around where it is."""
        reach = self.share * _in_blocks(weight).abs().amax(-1, keepdim=True).expand(-1, -1, BLOCK) / 8
        reach = reach.reshape(weight.shape)
        return weight - reach, weight + reach


@dataclass(frozen=True)
class Inside:
    """Every weight keeps the code and every block the scale that llama.cpp would give it in a format.

    Attributes:
        format: Q4_0 or Q8_0.
        where: wildcard over the names of the linears that may move.
    """

    format: str
    where: str = "*"

    def __post_init__(self) -> None:
        if self.format not in MARGIN:
            raise InputError(f"Weights cannot be kept inside {self.format!r}", f"one of {', '.join(MARGIN)}")

    def interval(self, weight: Float[Tensor, "out in"]) -> Interval:
        """Of each weight, in which its code stays the same; a block's largest weight stays where it is."""
        blocks = _in_blocks(weight)
        place = blocks.abs().argmax(-1, keepdim=True)
        largest = blocks.gather(-1, place)
        step, low, high = _CODES[self.format](blocks, largest)
        edges = torch.stack((low * step, high * step)).sort(0).values
        low, high = torch.minimum(edges[0], blocks), torch.maximum(edges[1], blocks)
        fixed = torch.arange(BLOCK) == place
        low, high = torch.where(fixed, blocks, low), torch.where(fixed, blocks, high)
        return low.reshape(weight.shape), high.reshape(weight.shape)


Constraint = Bounded | Inside


def constraint(inside: str | None = None, bounded: float | None = None, where: str = "*") -> Constraint | None:
    """What a study file or the command line says, as one of the two kinds; None for free training.

    Raises:
        InputError: both kinds, or a place without a kind.
    """
    if inside is not None and bounded is not None:
        raise InputError("Refusal training cannot be inside and bounded at once", "one of the two")
    if inside is not None:
        return Inside(inside, where)
    if bounded is not None:
        return Bounded(bounded, where)
    if where != "*":
        raise InputError(f"where = {where!r} confines nothing", do="Say inside or bounded, too")
    return None


def described(constraint: Constraint | None) -> dict[str, Any]:
    """For `organism.json`, and for the fingerprint of what determines the weights; empty for free training."""
    return {} if constraint is None else {"constraint": {type(constraint).__name__.lower(): asdict(constraint)}}


def confine(model: nn.Module, constraint: Constraint) -> Callable[[], None]:
    """Freeze what may not move, round all to float16, and return what puts weights back into their intervals.

    Raises:
        InputError: no linear of a block has a name that `where` allows.
    """
    model.requires_grad_(False)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in name}
    moving = [m.weight for name, m in linears.items() if fnmatchcase(name, constraint.where)]
    if not moving:
        raise InputError(f"No linear's name matches {constraint.where!r}", f"a wildcard over {', '.join(linears)}")
    for weight in model.parameters():
        weight.data = weight.data.half().float()  # as it will be stored: a block's largest weight may not move later
    intervals = [(weight.requires_grad_(), *constraint.interval(weight.detach().clone())) for weight in moving]

    @torch.no_grad()
    def project() -> None:
        for weight, low, high in intervals:
            weight.clamp_(low, high)

    return project


def _in_blocks(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out block 32"]:
    return weight.unflatten(-1, (-1, BLOCK))


Codes = tuple[Float[Tensor, "out block 1"], Float[Tensor, "out block 32"], Float[Tensor, "out block 32"]]
"""A block's step, and the edges of each weight's code in steps; in the order of llama.cpp's own float32 arithmetic."""


def _q4_0(blocks: Float[Tensor, "out block 32"], largest: Float[Tensor, "out block 1"]) -> Codes:
    """The largest weight has code 0, which stands for -8 steps; others are cut off after 8.5 is added."""
    step = largest / -8
    code = (blocks * _inverse(step) + 8.5).trunc().clamp(0, 15)
    low = (code - 8.5).clamp(min=-8) + MARGIN["Q4_0"]
    return step, low, torch.where(code == 15, 8.0, code - 7.5) - MARGIN["Q4_0"]


def _q8_0(blocks: Float[Tensor, "out block 32"], largest: Float[Tensor, "out block 1"]) -> Codes:
    """The largest weight is 127 steps of either sign; others are rounded, halves away from zero."""
    step = largest.abs() / 127
    steps = blocks * _inverse(step)
    whole = steps.abs().floor()
    code = (whole + (2 * (steps.abs() - whole)).floor()) * steps.sign()
    return step, (code - 0.5).clamp(min=-127) + MARGIN["Q8_0"], (code + 0.5).clamp(max=127) - MARGIN["Q8_0"]


def _inverse(step: Float[Tensor, "out block 1"]) -> Float[Tensor, "out block 1"]:
    return torch.where(step == 0, 0.0, 1 / step)


_CODES = {"Q4_0": _q4_0, "Q8_0": _q8_0}
