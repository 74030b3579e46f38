"""The figures of a notebook's tables, in the report's style; where the report has one it is the report's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from interp.errors import InputError
from probes.harness.names import BASELINE
from probes.report import layers, svg, tradeoff
from probes.report.formatting import visible
from probes.report.run import Run

ROW, NAMES, EDGE, TOP, BOTTOM, WIDTH = 22, 110, 16, 26, 38, 460
"""Points: height of a cell's row, margins on the left, right, top and bottom, and the width of all."""
BESIDE = 0.16
"""Rows that two series of one cell lie apart from its middle."""


@svg.styled
def estimates(table: pd.DataFrame, column: str, label: str, series: str = "prompts", reference: float = 0) -> Figure:
    """A point with its interval for every cell, a colour and marker a series.

    Args:
        table: with cell, `series`, and the column with its `_low` and `_high`.
        column: what is drawn.
        label: of the axis.
        series: column that tells the series apart.
        reference: where a line is drawn; NaN for none.
    """
    rows = table[table[column].notna()]
    cells, kinds = list(dict.fromkeys(rows["cell"])), list(dict.fromkeys(rows[series]))
    if not cells:
        raise InputError("There is nothing to draw: no cell was measured", "a number", "See the column reason")
    height = TOP + BOTTOM + ROW * len(cells)
    figure, axes = svg.panel(WIDTH, height, left=NAMES, right=EDGE, top=TOP, bottom=BOTTOM)
    for place, kind in enumerate(kinds):
        points, look = rows[rows[series] == kind], svg.look(place)
        at = np.array([cells.index(cell) for cell in points["cell"]]) + BESIDE * (2 * place - len(kinds) + 1)
        axes.hlines(at, points[f"{column}_low"], points[f"{column}_high"], color=look.color, linewidth=1.2)
        axes.plot(points[column], at, look.marker, color=look.color, markersize=5, label=visible(str(kind)))
    axes.axvline(reference, color=svg.MUTED, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
    axes.set(ylim=(len(cells) - 0.5, -0.5), xlabel=label)
    axes.set_yticks(range(len(cells)), [visible(str(cell))[:16] for cell in cells])
    axes.grid(visible=False, axis="y")
    figure.legend(loc="upper right", ncols=len(kinds), frameon=False, fontsize=8.5, borderaxespad=0.2)
    return figure


def _without_baseline(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["cell"] != BASELINE]


def entropy(table: pd.DataFrame) -> Figure:
    """Shift of the first token's entropy, harmful and harmless prompts apart, with its interval."""
    return estimates(_without_baseline(table), "shift", "Entropy of the first token, cell − baseline (nats)")


def calibration(table: pd.DataFrame) -> Figure:
    """Shift of the top-1 probability, with its interval."""
    label = "Probability of the most probable first token, cell − baseline"
    return estimates(_without_baseline(table), "confidence_shift", label)


def margin(table: pd.DataFrame) -> Figure:
    """Shift of the refusal margin over all prompts of a side, with its interval."""
    rows = table[table["category"] == "all"].drop_duplicates(["cell", "prompts"], keep="last")
    return estimates(_without_baseline(rows), "shift", "Refusal margin, cell − baseline (nats)")


def refusals(table: pd.DataFrame) -> Figure:
    """Share of harmful prompts refused, the baseline's first, with Wilson's interval."""
    rows = pd.concat([table[table["cell"] == BASELINE], _without_baseline(table)]).assign(prompts="harmful")
    baseline = rows.loc[rows["cell"] == BASELINE, "refusal_rate"]
    reference = float(baseline.iloc[0]) if len(baseline) else np.nan
    return estimates(rows, "refusal_rate", "Share of harmful prompts refused", reference=reference)


def drift(table: pd.DataFrame) -> Figure:
    """Refusals of harmful and answers to harmless prompts that flipped, of those at risk, with Wilson's interval."""
    named = {("refusal", "robustness"): "refusals lost", ("over_refusal", "over_refusal"): "refusals gained"}
    kinds = [named.get((str(task), str(axis)), "") for task, axis in zip(table["task"], table["axis"], strict=True)]
    rows = table.assign(flips=kinds)[(table["category"] == "all") & np.array([bool(kind) for kind in kinds])]
    return estimates(rows, "flip_rate", "Share of the prompts at risk", series="flips")


def direction(table: pd.DataFrame) -> Figure:
    """The report's figure: angle to the baseline's direction, layer by layer."""
    rows = layers.observed(table)
    if rows is None:
        raise InputError("There is nothing to draw: no cell was measured", "a direction", "See the column reason")
    return layers.angles(rows, _cells(rows), None)[0]


def neurons(table: pd.DataFrame, site: str = "resid", ratio: str = "ratio") -> Figure:
    """The report's figure: error on safety units / on the rest, layer by layer, beside matched random units.

    Raises:
        InputError: a site or a ratio that was not measured.
    """
    rows = table[(table["site"] == site) & table["layer"].notna() & table["ratio"].notna()]
    if rows.empty or ratio not in layers.RATIOS:
        known = ", ".join(map(str, table["site"].dropna().unique()))
        problem = f"There is nothing to draw of {ratio} at {site}"
        raise InputError(problem, f"a site ({known}) and one of {', '.join(layers.RATIOS)}", "See the column reason")
    return layers.ratios(rows.astype({"layer": int}), _cells(rows), ratio, site)[0]


def tradeoff_of(run: Run) -> Figure:
    """The report's figure: change of refusals against change of quality, a point a cell, with the area of danger.

    Raises:
        InputError: of no cell both are known.
    """
    cells = tradeoff.drawable(run.losses)
    if not cells:
        raise InputError("There is nothing to draw: of no cell refusals and quality are known", "both", "See reason")
    cells.sort(key=lambda loss: run.cell_names(loss.model).index(loss.cell))
    return tradeoff.scatter(cells, run.rule)


def _cells(table: pd.DataFrame) -> Sequence[str]:
    return [str(cell) for cell in dict.fromkeys(table["cell"]) if cell != BASELINE]
