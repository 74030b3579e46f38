"""Quality against refusal: a point per cell, and the regimes as areas."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from probes.matrix.regimes import RegimeRule
from probes.report import svg
from probes.report.formatting import bounds, plural, points
from probes.report.losses import Loss
from probes.report.run import Run

LEAST_X, LEAST_Y = (-3.0, 2.0), (-13.0, 4.0)
"""Points that the axes show at least, so that the area of danger is seen also where nothing is in it."""
LABELLED = 8
"""Cells that are all named in one picture; of more, those that lost refusals."""
LEFT = 70
"""Points left of the axes: room for a tick such as −12.5 beside the axis' name."""
STILL = 0.005
"""A change below half a point, in refusals and quality, is no change in a picture."""


def build(run: Run) -> list[dict[str, Any]] | None:
    """A scatter plot per model with a quality metric; none of a single model, whose picture is the first screen's."""
    all_losses = run.losses
    blocks = []
    for place, model in enumerate(run.models if run.several else ()):
        cells = [loss for loss in drawable(all_losses) if loss.model == model]
        if cells and moved(cells):
            cells.sort(key=lambda loss: run.cell_names(model).index(loss.cell))
            blocks.append({"model": model, "plot": draw(cells, run.rule, f"tradeoff-{place}")})
    return blocks or None


def picture(run: Run, found: list[Loss]) -> svg.Plot | None:
    """The picture of the first screen: all cells whose quality is known, if one of them moved."""
    cells = drawable(found)
    if not run.several:
        cells.sort(key=lambda loss: run.cell_names(loss.model).index(loss.cell))
    return draw(cells, run.rule, "tradeoff") if moved(cells) else None


def drawable(found: list[Loss]) -> list[Loss]:
    """The cells of which both changes are known."""
    return [loss for loss in found if not np.isnan(loss.quality.value + loss.refusals.value)]


def moved(cells: list[Loss]) -> bool:
    """Whether a cell's refusals or quality changed by what a picture can show."""
    return any(abs(change.value) >= STILL for loss in cells for change in (loss.refusals, loss.quality))


def draw(cells: list[Loss], rule: RegimeRule, key: str) -> svg.Plot:
    """`scatter` for the page."""
    models = list(dict.fromkeys(loss.model for loss in cells))
    of = models[0] if len(models) == 1 else plural(len(models), "model")
    return svg.Plot(scatter(cells, rule), key, f"Quality against refusal, {of}", describe(cells))


@svg.styled
def scatter(cells: list[Loss], rule: RegimeRule) -> Figure:
    """Change of quality (x) and of refusals (y) in points, with both intervals; what lost refusals is drawn larger."""
    several = len({loss.model for loss in cells}) > 1
    drawn = [(loss, svg.look(place)) for place, loss in enumerate(cells)]
    named = [(loss, style) for loss, style in drawn if len(cells) <= LABELLED or loss.lost_refusals]
    names = [loss.name if several else loss.cell for loss, _ in named]
    figure, axes = svg.panel(height=300, left=LEFT, right=svg.room(names))
    axes.set(xlim=_limits(cells, "quality", LEAST_X), ylim=_limits(cells, "refusals", LEAST_Y))
    _areas(axes, rule)
    for cell, style in drawn:
        x, y = _at(cell)
        _cross(axes, cell, style)
        axes.plot(x, y, style.marker, color=style.color, markersize=10 if cell.lost_refusals else 7, zorder=4,
                  markeredgecolor=svg.PAPER, markeredgewidth=0.4,
                  gid=svg.tip(f"{cell.name}: refusals {points(cell.refusals.value)} {bounds(cell.refusals)}, "
                              f"quality {points(cell.quality.value)} {bounds(cell.quality)} points"))  # fmt: skip
    svg.name_points(axes, names, [_at(loss) for loss, _ in named], [style for _, style in named])
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


def _at(cell: Loss) -> tuple[float, float]:
    return 100 * cell.quality.value, 100 * cell.refusals.value


def _limits(cells: list[Loss], of: str, least: tuple[float, float]) -> tuple[float, float]:
    """Wide enough for every interval, and for these points."""
    ends = [100 * end for cell in cells for end in getattr(cell, of)[:3] if not np.isnan(end)]
    low, high = min([least[0], *ends]), max([least[1], *ends])
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _areas(axes: Axes, rule: RegimeRule) -> None:
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    lost, stable, near = 100 * rule.refusal_loss, 100 * rule.stable_quality, 100 * rule.near_quality
    over = 100 * rule.over_refusal
    for (x0, x1), (y0, y1), colour, name in (
        ((stable, right), (bottom, lost), svg.DANGER, "hidden danger"),
        ((max(left, near), stable), (bottom, lost), svg.NEAR, "near"),
        ((left, near), (over, top), svg.OVER, "over-refusal"),
    ):
        if x0 >= x1 or y0 >= y1:
            continue
        area = Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=colour, edgecolor=svg.MUTED, linestyle=(0, (3, 2)),
                         linewidth=0.8, zorder=1)  # fmt: skip
        axes.add_patch(area)
        at_top = y1 == top
        axes.annotate(name, (x0, y1 if at_top else y0), (4, -5 if at_top else 5), textcoords="offset points",
                      va="top" if at_top else "bottom", fontsize=svg.LABEL, color=svg.MUTED)  # fmt: skip
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
