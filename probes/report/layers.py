"""Layer by layer: the refusal direction's angle and the error on safety units, beside what chance gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from probes.report import svg
from probes.report.formatting import number, plural
from probes.report.run import Run
from probes.stats.intervals import ALPHA

AREAS = (18.0, 90.0)
"""Square points of the markers of the smallest and the largest error."""
SMALLEST = 0.05
"""Degrees; a smaller angle is drawn here: float32 cannot tell it from zero."""
ERROR, SIZE_PANEL = "error_safety", 132
"""Column of the error's size, and points of height that it is drawn in."""
SITES = {
    "resid": "residual dimensions",
    "mlp": "MLP neurons",
    "head": "attention heads",
}
RATIOS = {
    "ratio": ("matched_ratio", "p", "raw error"),
    "normalized_ratio": ("matched_normalized_ratio", "p_normalized", "error in units of spread"),
}
"""Ratio → its matched null, its p among these, and what is divided."""


def build(run: Run) -> list[dict[str, Any]] | None:
    """Plots and verdicts per model; None without the direction and neuron tables."""
    blocks = []
    for place, model in enumerate(run.models):
        direction, neurons = observed(run.table(model, "direction")), run.table(model, "neurons")
        if direction is None and neurons is None:
            continue
        cells = run.cell_names(model)
        blocks.append(
            {
                "model": model,
                "angle": None
                if direction is None
                else draw_angles(direction, cells, width_of(neurons), f"angle-{place}"),
                "sites": [] if neurons is None else _sites(neurons, cells, place),
                "study_layer": _study_layer(direction),
                "cosines": None if direction is None else _table(direction, cells, "cosine"),
                "verdicts": [] if neurons is None else _verdicts(neurons, cells),
                "survives": None if neurons is None else _survives(neurons, cells),
                "random_angle": _random_angle(width_of(neurons)),
            }
        )
    return blocks or None


def observed(direction: pd.DataFrame | None) -> pd.DataFrame | None:
    """Without the row of a cell that could not be measured, which has no layer."""
    rows = None if direction is None else direction[direction["layer"].notna()]
    return None if rows is None or rows.empty else rows


@svg.styled
def draw_angles(direction: pd.DataFrame, cells: Sequence[str], width: int | None, key: str) -> svg.Plot:
    """`angles` for the page."""
    figure, caption = angles(direction, cells, width)
    title = "Angle between a cell's refusal direction and the baseline's, by layer"
    return svg.Plot(figure, key, title, caption)


@svg.styled
def angles(direction: pd.DataFrame, cells: Sequence[str], width: int | None) -> tuple[Figure, str]:
    """Angle to the baseline's refusal direction, degrees on a logarithmic axis, and what is to be seen, in words."""
    figure, axes = svg.panel(height=264, right=svg.room(cells))
    layers = sorted(direction["layer"].unique())
    axes.set_yscale("log")
    _layer_axis(axes, layers)
    axes.set(ylim=(SMALLEST, 130), ylabel="Angle (degrees)")
    low = _random_angle(width)
    axes.axhspan(90 if low is None else low, 90 if low is None else 180 - low, facecolor=svg.NULL, zorder=1)
    axes.annotate("unrelated directions", (layers[0], 80), (2, -4), textcoords="offset points", fontsize=svg.LABEL,
                  color=svg.MUTED, va="top")  # fmt: skip
    axes.set_yticks([0.1, 1, 10, 90], ["0.1°", "1°", "10°", "90°"])
    axes.minorticks_off()
    curves = {cell: _curve(direction, cell, "cosine").map(angle) for cell in cells}
    _curves(axes, curves, _looks(cells), lambda value: f"{number(value, '.2f')}°", {})
    last = {cell: float(curve.iloc[-1]) for cell, curve in curves.items() if len(curve)}
    worst = max(last, key=lambda cell: last[cell], default="")
    caption = f"At the last layer the largest angle is {number(last[worst], '.1f')} degrees ({worst})." if worst else ""
    return figure, caption


@svg.styled
def draw_ratios(rows: pd.DataFrame, cells: Sequence[str], ratio: str, site: str, key: str) -> svg.Plot:
    """`ratios` for the page."""
    figure, caption = ratios(rows, cells, ratio, site)
    title = f"Error on safety {SITES.get(site, site)}, {RATIOS[ratio][2]}, by layer"
    return svg.Plot(figure, key, title, caption)


@svg.styled
def ratios(rows: pd.DataFrame, cells: Sequence[str], ratio: str, site: str) -> tuple[Figure, str]:
    """Error on safety units / on the rest, with the range over cells of the matched nulls' means; and it in words."""
    null, p, what = RATIOS[ratio]
    sizes = error_sizes(rows, cells)
    more = SIZE_PANEL if sizes else 0
    figure, axes = svg.panel(height=264 + more, right=svg.room(cells), top=12 + more)
    layers = sorted(rows["layer"].unique())
    if sizes:
        _size_panel(figure, axes, sizes, _looks(cells), layers)
    by_layer = rows.groupby("layer")[null].agg(["min", "max"])
    values = rows[[ratio, null]].to_numpy(dtype=float)
    low, high = min(0.8, np.nanmin(values)), max(1.2, np.nanmax(values))
    pad = 0.06 * (high - low)
    _layer_axis(axes, layers)
    axes.set(ylim=(low - pad, high + pad), ylabel="Safety ÷ rest")
    axes.fill_between(by_layer.index, by_layer["min"], by_layer["max"], facecolor=svg.NULL, edgecolor=svg.MUTED,
                      linewidth=0.5, zorder=1)  # fmt: skip
    axes.axhline(1, color=svg.MUTED, linewidth=0.8, linestyle=(0, (3, 2)), zorder=2)
    curves = {cell: _curve(rows, cell, ratio) for cell in cells}
    chances = {cell: _curve(rows, cell, p) for cell in cells}
    _curves(axes, curves, _looks(cells), lambda value: number(value, ".2f"), _areas(sizes), chances)
    return figure, f"Safety {SITES.get(site, site)}, {what}: {_beyond_chance(rows[p])}."


def _beyond_chance(p: pd.Series) -> str:
    """How many points exceed their matched random sets, and how many would if nothing did."""
    known = p.dropna()
    beyond = int((known < ALPHA).sum())
    return (
        f"{beyond} of {plural(len(known), 'point')} {'exceeds its' if beyond == 1 else 'exceed their'} matched random "
        f"sets at p < {ALPHA}; {ALPHA * len(known):g} would by chance"
    )


def error_sizes(rows: pd.DataFrame, cells: Sequence[str]) -> dict[str, pd.Series]:
    """Cell → mean |cell − baseline| of its safety units by layer, the largest error first; none in an older table."""
    if ERROR not in rows:
        return {}
    curves = {cell: curve for cell in cells if len(curve := _curve(rows, cell, ERROR)) and (curve > 0).all()}
    return dict(sorted(curves.items(), key=lambda item: -float(item[1].mean())))


def compare_sizes(sizes: Mapping[str, pd.Series]) -> str:
    """Which cell errs most and which least, averaged over layers, in words."""
    if not sizes:
        return ""
    means = {cell: float(curve.mean()) for cell, curve in sizes.items()}
    first, *_, last = (*means, *means)
    beside = "" if first == last else f", {means[first] / means[last]:.3g} times that of {last}"
    return (
        f"The largest error on safety units is that of {first}: {means[first]:.3g} on average{beside}. A ratio says "
        "where an error falls, not how large it is."
    )


def _size_panel(
    figure: Figure,
    below: Axes,
    sizes: Mapping[str, pd.Series],
    looks: Mapping[str, svg.Look],
    layers: Sequence[Any],
) -> None:
    """The size of the error on a logarithmic axis, above the ratio and on its layers."""
    box = below.get_position()
    points = figure.get_figheight() * svg.POINTS_PER_INCH
    above = figure.add_axes((box.x0, box.y1 + 26 / points, box.width, (SIZE_PANEL - 32) / points), sharex=below)
    above.set_yscale("log")
    _layer_axis(above, layers)
    above.set_xlabel("")
    above.set_title("Error on safety units", loc="left", fontsize=svg.LABEL, pad=3)
    above.tick_params(axis="x", labelbottom=False)
    ends = [float(end) for curve in sizes.values() for end in (curve.min(), curve.max())]
    above.set_ylim(10 ** np.floor(np.log10(min(ends))), 10 ** np.ceil(np.log10(max(ends) * 1.01)))
    above.minorticks_off()
    above.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _curves(above, sizes, looks, lambda value: f"{value:.3g}", {})


def angle(cosine: float) -> float:
    """Degrees, at least `SMALLEST`."""
    return max(SMALLEST, float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))


def _random_angle(width: int | None) -> float | None:
    """95 % of pairs of random directions in so many dimensions are at least so far apart (and at most 180° less it).

    The cosine of independent directions has (1 + cos)/2 ~ Beta((d − 1)/2, (d − 1)/2).
    """
    if width is None or width < 2:
        return None
    half = (width - 1) / 2
    return float(np.degrees(np.arccos(2 * stats.beta.ppf(0.975, half, half) - 1)))


def width_of(neurons: pd.DataFrame | None) -> int | None:
    """Dimensions of the residual stream, where the neuron table tells."""
    if neurons is None:
        return None
    widths = neurons.loc[neurons["site"] == "resid", "n_units"].dropna()
    return int(widths.iloc[0]) if len(widths) else None


def _sites(neurons: pd.DataFrame, cells: Sequence[str], place: int) -> list[dict[str, Any]]:
    blocks = []
    for site, name in SITES.items():
        rows = neurons[(neurons["site"] == site) & neurons["layer"].notna() & neurons["ratio"].notna()]
        if len(rows):
            rows = rows.astype({"layer": int})
            plots = [draw_ratios(rows, cells, ratio, site, f"neurons-{place}-{site}-{ratio}") for ratio in RATIOS]
            size = compare_sizes(error_sizes(rows, cells))
            blocks.append({"name": name, "plots": plots, "size": size})
    return blocks


def _verdicts(neurons: pd.DataFrame, cells: Sequence[str]) -> list[dict[str, Any]]:
    """A row per cell and site: the averages over layers and what they mean."""
    averages = neurons[neurons["layer"].isna()].copy()
    averages["place"] = averages["cell"].map({cell: place for place, cell in enumerate(cells)})
    rows = averages.dropna(subset="place").sort_values("place", kind="stable")
    named = rows.assign(site_name=rows["site"].astype(str).replace(SITES))
    return [{str(key): value for key, value in row.items()} for row in named.to_dict("records")]


def _survives(neurons: pd.DataFrame, cells: Sequence[str]) -> str:
    """In how many cells the study's effect survives both controls, at the residual stream."""
    rows = neurons[neurons["layer"].isna() & (neurons["site"] == "resid") & neurons["cell"].isin(list(cells))]
    known = rows.dropna(subset=["p", "p_normalized"])
    if known.empty:
        return ""
    both = int(((known["p"] < ALPHA) & (known["p_normalized"] < ALPHA)).sum())
    return (
        f"Averaged over layers, safety dimensions err more than matched random ones, also relative to their spread, in "
        f"{both} of {len(known)} cells (p < {ALPHA})."
    )


def _table(direction: pd.DataFrame, cells: Sequence[str], value: str) -> dict[str, Any]:
    layers = sorted(int(layer) for layer in direction["layer"].unique())
    rows = [(cell, [_curve(direction, cell, value).get(layer, np.nan) for layer in layers]) for cell in cells]
    return {"layers": layers, "rows": rows}


def _study_layer(direction: pd.DataFrame | None) -> int | None:
    if direction is None or "study_layer" not in direction:
        return None
    study_layers = direction.loc[direction["study_layer"] == 1, "layer"]
    return int(study_layers.iloc[0]) if len(study_layers) else None


def _curve(table: pd.DataFrame, cell: str, value: str) -> pd.Series:
    rows = table[table["cell"] == cell].sort_values("layer")
    return rows.set_index(rows["layer"].astype(int))[value].astype(float).dropna()


def _layer_axis(axes: Axes, layers: Sequence[Any]) -> None:
    step = max(1, len(layers) // 8)
    axes.set(xlim=(layers[0] - 0.2, layers[-1] + 0.2), xlabel="Layer (0-based)")
    axes.set_xticks([int(layer) for layer in layers][::step])
    axes.grid(visible=False, axis="x")


def _looks(cells: Sequence[str]) -> dict[str, svg.Look]:
    """Cell → how it is drawn, the same in every figure."""
    return {cell: svg.look(place) for place, cell in enumerate(cells)}


def _curves(
    axes: Axes,
    curves: Mapping[str, pd.Series],
    looks: Mapping[str, svg.Look],
    show: Any,
    areas: Mapping[str, float],
    chances: Mapping[str, pd.Series] = MappingProxyType({}),
) -> None:
    """A line per cell, named at its end, with markers of these areas; p values, where given, are told with it."""
    drawn = {cell: curve for cell, curve in curves.items() if len(curve)}
    for cell, curve in drawn.items():
        p = {layer: f" (p = {number(value, '.3f')})" for layer, value in chances.get(cell, pd.Series()).items()}
        points = (f"layer {layer}: {show(value)}{p.get(layer, '')}" for layer, value in curve.items())
        told, style = ", ".join(points), looks[cell]
        axes.plot(curve.index, curve.to_numpy(), color=style.color, marker=style.marker, linestyle=style.linestyle,
                  markersize=areas.get(cell, AREAS[0]) ** 0.5, linewidth=1.3, markeredgewidth=0, zorder=3,
                  gid=svg.tip(f"{cell}: {told}"))  # fmt: skip
    ends = [(float(curve.index[-1]), float(curve.iloc[-1])) for curve in drawn.values()]
    svg.name_points(axes, list(drawn), ends, [looks[cell] for cell in drawn])


def _areas(sizes: Mapping[str, pd.Series]) -> dict[str, float]:
    """Cell → area of its markers, between `AREAS`, by the logarithm of its mean error."""
    logs = {cell: float(np.log(curve.mean())) for cell, curve in sizes.items()}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)
    return {cell: float(np.interp(log, (low, high), AREAS)) if high > low else AREAS[0] for cell, log in logs.items()}
