"""Restoring parts of a cell, damaging those of its baseline: how much of the margin's shift they carry."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.progress import track
from probes.attribution.parts import Part
from probes.attribution.settings import PartKind
from probes.causal.exchange import Aim, Interventions
from probes.causal.rankings import matched_draws, ranked
from probes.causal.recovery import Recovery, recoveries
from probes.causal.settings import DRAWS, KINDS, By
from probes.stats import intervals
from probes.stats.intervals import rate_interval
from probes.stats.random_draws import draw_p

RANDOM_BOUNDS = (0.05, 0.95)
"""Percentiles of the random draws that a row shows."""
COLUMNS = (
    *("cell", "aim", "by", "kind", "ranking", "k", "n_parts", "n_prompts", "start", "goal"),
    *("margin", "margin_low", "margin_high", "gain", "gain_low", "gain_high", "share", "share_low", "share_high"),
    *("draws", "random_gain", "random_gain_low", "random_gain_high", "random_share", "p"),
    *("refusal_start", "refusal_goal", "refusal_rate", "refusal_rate_low", "refusal_rate_high", "refusal_share"),
    *("refusal_draws", "random_refusal_rate", "reason"),
)
"""The columns of the table `causal_restore`; see `probes.causal.measure`."""


@dataclass(frozen=True)
class Plan:
    """What of the curves is measured.

    Attributes:
        aims: restore, damage or both.
        by: weights, activations or both.
        kinds: of parts.
        draws: random sets at every k that has a control.
        refusals: generate answers at every point of the curves by weights, too.
        refusal_draws: for how many of the random sets.
        every_control: random sets at every k of a curve instead of every fourth.
        seed: of the random sets.
    """

    aims: Collection[Aim] = tuple(Aim)
    by: Collection[By] = (By.WEIGHTS,)
    kinds: Collection[PartKind] = KINDS
    draws: int = DRAWS
    refusals: bool = True
    refusal_draws: int = 2
    every_control: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """One point of a curve: the k first parts of a ranking.

    Attributes:
        controlled: measured beside random sets.
    """

    aim: Aim
    by: By
    kind: str
    ranking: str
    chosen: tuple[Part, ...]
    n_parts: int
    controlled: bool = False


def grid(n: int) -> list[int]:
    """1, 2, 4, 8 … and all."""
    return [*takewhile(lambda k: k < n, (2**exponent for exponent in range(n.bit_length()))), n]


def points(rankings: Mapping[PartKind, Mapping[str, Mapping[Part, float]]], plan: Plan) -> list[Point]:
    """Every point of every curve; `rankings` holds scores by kind and name."""
    curve_points = []
    for aim in plan.aims:
        for by in plan.by:
            for kind in plan.kinds:
                for name, scores in rankings[kind].items():
                    order = ranked(scores)
                    for place, k in enumerate(grid(len(order))):
                        controlled = k < len(order) and (plan.every_control or place % 4 == 2)
                        curve_points.append(Point(aim, by, kind, name, tuple(order[:k]), len(order), controlled))
    return curve_points


def restore_rows(
    models: Interventions, rankings: Mapping[PartKind, Mapping[str, Mapping[Part, float]]], plan: Plan
) -> list[dict[str, Any]]:
    """Rows of `causal_restore`, without the name of the cell.

    Args:
        models: a baseline and a cell.
        rankings: kind → name of the ranking → score of every part, the largest first to be exchanged.
        plan: what to measure.
    """
    everything = tuple(models.everything())
    todo = points(rankings, plan)
    todo += [Point(aim, By.WEIGHTS, "everything", "all", everything, len(everything)) for aim in plan.aims]
    margins, drawn, refusals = [], [], []
    for point in track(todo, "points of the curves"):
        margins.append(models.margins(point.aim, point.by, point.chosen))
        drawn.append(_drawn(models, point, plan))
        refusals.append(_refusals(models, point, plan))
    rows = []
    for aim in plan.aims:
        numbers = [number for number, point in enumerate(todo) if point.aim is aim]
        start, goal = models.unchanged(aim)
        effects = recoveries(torch.stack([margins[number] for number in numbers]), start, goal)
        for number, effect in zip(numbers, effects, strict=True):
            control = _control(effect, drawn[number], start, goal)
            rows.append(_row(todo[number], effect, start, goal) | control | refusals[number])
    return rows


def _row(point: Point, effect: Recovery, start: Tensor, goal: Tensor) -> dict[str, Any]:
    return {
        **{"aim": str(point.aim), "by": str(point.by), "kind": str(point.kind), "ranking": point.ranking},
        **{"k": len(point.chosen), "n_parts": point.n_parts, "n_prompts": len(start)},
        **{"start": start.double().mean().item(), "goal": goal.double().mean().item()},
        **intervals.interval_columns("margin", effect.margin),
        **intervals.interval_columns("gain", effect.gain),
        **intervals.interval_columns("share", effect.share),
        "reason": effect.reason,
    }


def _refusals(models: Interventions, point: Point, plan: Plan) -> dict[str, Any]:
    """Refusal rates of real answers, with the weights of the point exchanged, and of random sets."""
    if point.by is not By.WEIGHTS or not plan.refusals:
        return {}
    start, goal = models.refused(point.aim, ()), models.refused(point.aim, models.everything())
    refusals = models.refused(point.aim, point.chosen)
    (effect,) = recoveries(refusals[None].float(), start.float(), goal.float())
    columns = {
        "refusal_start": start.float().mean().item(),
        "refusal_goal": goal.float().mean().item(),
        **intervals.interval_columns("refusal_rate", rate_interval(refusals)),
        "refusal_share": effect.share.value,
    }
    if point.controlled and plan.refusal_draws:
        sets = matched_draws(point.chosen, models.parts, plan.refusal_draws, plan.seed)
        rates = [models.refused(point.aim, part_set).float().mean().item() for part_set in sets]
        columns |= {"refusal_draws": len(sets), "random_refusal_rate": float(np.mean(rates))}
    return columns


def _drawn(models: Interventions, point: Point, plan: Plan) -> list[Tensor]:
    """Margins with random sets exchanged instead."""
    if not point.controlled:
        return []
    sets = matched_draws(point.chosen, models.parts, plan.draws, plan.seed)
    return [models.margins(point.aim, point.by, part_set) for part_set in sets]


def _control(effect: Recovery, drawn: Sequence[Tensor], start: Tensor, goal: Tensor) -> dict[str, Any]:
    """The random sets beside an effect: their mean gain, its percentiles, and how many come as far towards the goal."""
    if not drawn:
        return {"draws": 0}
    gain, undefined = effect.gain.value, bool(effect.reason)
    distance = (goal.double() - start.double()).mean().item()
    gains = np.array([(margins.double() - start.double()).mean().item() for margins in drawn])
    low, high = np.quantile(gains, RANDOM_BOUNDS)
    return {
        "draws": len(drawn),
        "random_gain": float(gains.mean()),
        "random_gain_low": float(low),
        "random_gain_high": float(high),
        "random_share": nan if undefined else float(gains.mean() / distance),
        "p": draw_p(gain * np.sign(distance), gains * np.sign(distance)),
    }
