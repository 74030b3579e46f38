"""Round a baseline's own weights by chance at the steps of formats, and see what becomes of its refusal margins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from interp.chat import AnyTemplate
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import track
from interp.streaming.memory import require_in_memory
from probes.fragility.rounding import Rounding, nearest, rounded_to, stochastic
from probes.fragility.settings import BITS, DRAWS, GROUP
from probes.harness.comparison import alone
from probes.harness.pieces import kept
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.margin.expected_losses import Refused, Sides, expected_losses
from probes.margin.openings import baseline_refusals, common_openings
from probes.margin.refusal_margin import margins
from probes.margin.settings import Source
from probes.matrix.regimes import STUDY
from probes.stats.intervals import float64_array, interval_columns, mean_interval

STOCHASTIC, NEAREST = "stochastic", "nearest"
MOST_BITS = 16
Looked = Mapping[str, Float[Tensor, " prompt"]]
"""Side → margin of each prompt."""


@dataclass(repr=False)
class FragilityResult(Result):
    """The probe's result, with every draw beside it; see `measure`.

    Attributes:
        draws: `fragility_draws`.
    """

    draws: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The draws."""
        return (self.draws,)


def measure(
    baseline: HookedModel,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    bits: Sequence[int] = BITS,
    group: Annotated[int, Field(ge=-1)] = GROUP,
    draws: Annotated[int, Field(ge=1)] = DRAWS,
    seed: int = 0,
    openings: Source = "baseline",
    template: AnyTemplate = "auto",
    batch_size: int | None = None,
) -> FragilityResult:
    """How many refusals a model should lose to rounding alone, at each number of bits, without any cell of it.

    The weights of the block linears are rounded up or down by chance to the grid of a format
    (`probes.fragility.rounding`), several times; each draw is taken for a cell, whose losses the margin–noise law
    expects (`probes.margin.noise_law`). A row rounded to the nearest points stands beside. Such noise knows no
    direction: what a writer saves by calibration, or what only one format's exact grid does, it does not show.

    Table: one row per number of bits and rounding, with columns
        bits, rounding ("stochastic" or "nearest"), draws (1 of the latter);
        n_refused: harmful prompts that the baseline refuses;
        n: those of them whose margin is above the threshold, which the law is about;
        shift, shift_low, shift_high: mean over harmful prompts of rounded − baseline in nats, mean over draws, and its
            95 % t interval over draws;
        between_draws: standard deviation of that mean from draw to draw;
        spread: standard deviation over the refused prompts within a draw (the law's σ), mean over draws;
        harmless_shift: mean shift of harmless prompts;
        expected_lost, expected_lost_low, expected_lost_high: refusals expected to be lost, mean over draws, and its
            95 % t interval over draws;
        crossed: prompts of the n whose margin fell below the threshold, mean over draws;
        breaks: whether the expected loss is more than 10 points of the harmful prompts, the study's bound of danger;
        reason: why a number is NaN, else "".

    `fragility_draws`: one row per draw, with columns bits, rounding, draw, seed, n_refused, n, shift, spread,
        harmless_shift, expected_lost, crossed, reason.

    Args:
        baseline: the model; its weights are changed in place and put back bit by bit.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        bits: numbers of bits to round to.
        group: weights of a row that share a grid; −1 for whole rows.
        draws: stochastic roundings for each number of bits.
        seed: of the first draw; the others follow, the same for all numbers of bits.
        openings: as of `probes.margin.measure`.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt.
        batch_size: prompts per forward pass.

    Raises:
        InputError: a prompt set is empty or has a prompt longer than the context; bits below 1 or above 16.

    Example:
        >>> fragility.measure(interp.load("path/to/model"), builtin("harmful"), builtin("harmless"), bits=[4, 3]).table
    """
    _check_bits(bits)
    require_in_memory(baseline, "probes.fragility")
    comparison = alone(baseline, harmful, harmless, template=template)
    refusal_openings = common_openings(comparison, openings)

    def look() -> dict[str, Float[Tensor, " prompt"]]:
        return {
            side: margins(baseline, texts, refusal_openings, batch_size) for side, texts in comparison.texts.items()
        }

    before = _arrays(look())
    refused = baseline_refusals(comparison, openings) or {side: values > 0 for side, values in before.items()}
    drawn: list[dict[str, Any]] = []
    with comparison.pieces_of(None, batch_size=batch_size):
        for plan in track(list(_plans(bits, draws, seed)), "roundings"):
            what = ["rounded", *plan.values(), group, openings]
            after = _arrays(kept(what, partial(_rounded, baseline, plan, group, look)))
            drawn.append(plan | _of_draw(before, after, refused))
    settings = {"bits": list(bits), "group": group, "draws": draws, "seed": seed}
    settings |= {"openings": refusal_openings.describe()}
    by_rounding = pd.DataFrame(drawn).groupby(["bits", "rounding"], sort=False)
    rows = [{"bits": n, "rounding": kind, **_summary(part, len(harmful))} for (n, kind), part in by_rounding]
    return FragilityResult(
        **vars(comparison.result("fragility", rows, **settings)),
        draws=comparison.result("fragility_draws", drawn, **settings),
    )


def _check_bits(bits: Sequence[int]) -> None:
    if not bits or not all(1 <= number <= MOST_BITS for number in bits) or len(set(bits)) < len(bits):
        raise InputError(f"Weights cannot be rounded to {list(bits)} bits", f"different numbers from 1 to {MOST_BITS}")


def _plans(bits: Sequence[int], draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every rounding: the draws of a number of bits, then the nearest points."""
    for number in bits:
        for draw in range(draws):
            yield {"bits": number, "rounding": STOCHASTIC, "draw": draw, "seed": seed + draw}
        yield {"bits": number, "rounding": NEAREST, "draw": 0, "seed": None}


def _rounded(model: HookedModel, plan: Mapping[str, Any], group: int, look: Callable[[], Looked]) -> Looked:
    """What is seen while the weights are rounded."""
    choose: Rounding = nearest
    if plan["seed"] is not None:
        choose = stochastic(torch.Generator().manual_seed(plan["seed"]))
    with rounded_to(model, plan["bits"], group, choose):
        return look()


def _arrays(looked: Looked) -> dict[str, Float[np.ndarray, " prompt"]]:
    return {side: float64_array(values) for side, values in looked.items()}


def _of_draw(before: Sides, after: Sides, refused: Refused) -> dict[str, Any]:
    """One draw taken for a cell."""
    expected = expected_losses(before, after, refused)
    shift = {side: float((after[side] - before[side]).mean()) for side in after}
    return {
        "n_refused": expected.n_refused,
        "n": len(expected.prompts),
        "shift": shift["harmful"],
        "harmless_shift": shift["harmless"],
        "spread": float(np.mean([half.law.spread for half in expected.halves])),
        "expected_lost": expected.total().value,
        "crossed": np.nan if expected.reason else float(expected.crossed.sum()),
        "reason": expected.reason,
    }


def _summary(drawn: pd.DataFrame, n_harmful: int) -> dict[str, Any]:
    """Over the draws of one number of bits."""
    expected = mean_interval(drawn["expected_lost"].to_numpy())
    return {
        "draws": len(drawn),
        "n_refused": int(drawn["n_refused"].iloc[0]),
        "n": int(drawn["n"].iloc[0]),
        **interval_columns("shift", mean_interval(drawn["shift"].to_numpy())),
        "between_draws": float(drawn["shift"].std()),
        "spread": float(drawn["spread"].mean()),
        "harmless_shift": float(drawn["harmless_shift"].mean()),
        **interval_columns("expected_lost", expected),
        "crossed": float(drawn["crossed"].mean()),
        "breaks": None if np.isnan(expected.value) else bool(-expected.value < STUDY.refusal_loss * n_harmful),
        "reason": drawn["reason"].iloc[0],
    }
