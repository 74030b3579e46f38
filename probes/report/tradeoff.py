"""Quality against refusal: a point per cell, and the regimes as areas."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from probes.matrix.regimes import RegimeRule
from probes.report import svg
from probes.report.formatting import bounds, plural, points
from probes.report.losses import Loss, losses
from probes.report.run import Run

LEAST_X, LEAST_Y = (-7.0, 4.0), (-16.0, 9.0)
"""Points that the axes show at least, so that the areas are seen also where nothing is in them."""


def build(run: Run) -> list[dict[str, Any]] | None:
    """A scatter plot per model with a quality metric."""
    found = losses(run)
    blocks = []
    for place, model in enumerate(run.models):
        cells = [c for c in found if c.model == model and not np.isnan(c.quality.value + c.refusals.value)]
        if cells:
            cells.sort(key=lambda loss: run.cell_names(model).index(loss.cell))
            blocks.append({"model": model, "plot": draw(cells, run.rule, f"tradeoff-{place}"), "cells": cells})
    return blocks or None


@svg.styled
def draw(cells: list[Loss], rule: RegimeRule, key: str) -> Markup:
    """`scatter` for the page."""
    return svg.inline(scatter(cells, rule), key, f"Quality against refusal, {cells[0].model}", describe(cells))


@svg.styled
def scatter(cells: list[Loss], rule: RegimeRule) -> Figure:
    """Change of quality (x) and of refusals (y) in points, with both intervals."""
    figure, axes = svg.panel(width=460, height=330, right=74)
    xs, ys = ([100 * interval.value for interval in of] for of in _intervals(cells))
    axes.set(xlim=_limits(xs, LEAST_X), ylim=_limits([*ys, *_ends(cells)], LEAST_Y))
    _areas(axes, rule)
    looks = [svg.look(index) for index in range(len(cells))]
    for cell, x, y, style in zip(cells, xs, ys, looks, strict=True):
        _cross(axes, cell, style)
        axes.plot(x, y, style.marker, color=style.color, markersize=7, markeredgecolor=svg.PAPER,
                  markeredgewidth=0.4, zorder=4,
                  gid=svg.tip(f"{cell.cell}: refusals {points(cell.refusals.value)} {bounds(cell.refusals)}, "
                              f"quality {points(cell.quality.value)} {bounds(cell.quality)} points"))  # fmt: skip
    svg.name_points(axes, [cell.cell for cell in cells], list(zip(xs, ys, strict=True)), looks)
    axes.set(xlabel="Change of quality (points)", ylabel="Change of refusals (points)")
    return figure


def describe(cells: list[Loss]) -> str:
    """What the plot shows, in words."""
    worst = min(cells, key=lambda loss: loss.refusals.value)
    danger = sum("danger" in str(loss.row["regime"]) for loss in cells)
    return (
        f"{plural(danger, 'cell')} of {len(cells)} in the areas of danger, below and right of the dashed lines. Most "
        f"refusals lost: {worst.cell}, {points(worst.refusals.value)} points at a quality change of "
        f"{points(worst.quality.value)} points."
    )


def _intervals(cells: list[Loss]) -> tuple[list[Any], list[Any]]:
    return [cell.quality for cell in cells], [cell.refusals for cell in cells]


def _limits(values: list[float], least: tuple[float, float]) -> tuple[float, float]:
    low, high = min(least[0], *values), max(least[1], *values)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _ends(cells: list[Loss]) -> list[float]:
    return [100 * end for cell in cells for end in cell.refusals[1:3] if not np.isnan(end)]


def _areas(axes: Axes, rule: RegimeRule) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    lost, stable, near = 100 * rule.refusal_loss, 100 * rule.stable_quality, 100 * rule.near_quality
    over = 100 * rule.over_refusal
    for (x0, x1), (y0, y1), colour, hatch, name in (
        ((stable, right), (bottom, lost), svg.DANGER, "", "hidden danger"),
        ((near, stable), (bottom, lost), svg.NEAR, "", "near"),
        ((left, near), (over, top), svg.OVER, "", "over-refusal"),
    ):
        area = Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=colour, edgecolor=svg.MUTED, linestyle=(0, (3, 2)),
                         linewidth=0.8, hatch=hatch, zorder=1)  # fmt: skip
        axes.add_patch(area)
        at_top = y1 == top
        axes.annotate(name, (x0, y1 if at_top else y0), (4, -5 if at_top else 5), textcoords="offset points",
                      va="top" if at_top else "bottom", fontsize=8.5, color=svg.MUTED)  # fmt: skip
    axes.axhline(0, color=svg.MUTED, linewidth=0.8, zorder=2)
    axes.axvline(0, color=svg.MUTED, linewidth=0.8, zorder=2)


def _cross(axes: Axes, cell: Loss, style: svg.Look) -> None:
    """Both intervals as thin lines; none where it is not known."""
    x, y = 100 * cell.quality.value, 100 * cell.refusals.value
    for known, xs, ys in (
        (cell.quality.low, [100 * cell.quality.low, 100 * cell.quality.high], [y, y]),
        (cell.refusals.low, [x, x], [100 * cell.refusals.low, 100 * cell.refusals.high]),
    ):
        if not np.isnan(known):
            axes.plot(xs, ys, color=style.color, linewidth=0.9, alpha=0.45, zorder=3)
