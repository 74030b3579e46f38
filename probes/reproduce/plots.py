"""The study's plots from the published tables: the index by row, quality against refusal, the routing curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from interp.files import atomic_file
from probes.matrix import regimes
from probes.reproduce.figures_regimes import study_matrix
from probes.reproduce.published import CITATION, published_index_rows
from probes.rtsi.index import RTSI
from probes.rtsi.routing import curve
from probes.stats import intervals

# Okabe and Ito's palette: distinct for the common kinds of colour blindness.
COLOURS = {
    "hidden_danger": "#D55E00",
    "near_hidden_danger": "#E69F00",
    "over_refusal": "#56B4E9",
    "neutral": "#0072B2",
    "undetermined": "#999999",
}
MARKERS = {"hidden_danger": "X", "near_hidden_danger": "D", "over_refusal": "^", "neutral": "o", "undetermined": "s"}
SOURCE = f"Data: {CITATION}"


def write_all(directory: Path) -> list[Path]:
    """Write the three plots as PNG into a directory and return their paths."""
    matrix = study_matrix()
    rows = published_index_rows().drop(columns="regime").merge(matrix[["model", "quantization", "regime"]])
    change = rows["advbench_refusal_rate_delta"].to_numpy()
    index = RTSI.load()
    scores = index.score_samples(rows)
    drawn = {
        "rtsi": plot_index(rows.assign(score=scores), index),
        "regimes": plot_regimes(matrix[matrix["regime"] != regimes.BASELINE]),
        "routing": plot_routing(curve(scores, change), index),
    }
    return [_save(figure, directory / f"{name}.png") for name, figure in drawn.items()]


def plot_index(rows: pd.DataFrame, index: RTSI) -> Figure:
    """RTSI of each row, largest first, coloured by regime, with the bands."""
    ordered = rows.sort_values("score")
    figure = Figure(figsize=(8, 0.2 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    labels = ordered["model"] + "  " + ordered["quantization"]
    axes.barh(labels, ordered["score"], color=ordered["regime"].map(COLOURS), height=0.75)
    for threshold in (index.moderate, index.high):
        axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
    edges = (0.0, index.moderate, index.high, max(1.1 * float(ordered["score"].max()), index.high + 0.1))
    for name, left, right in zip(("LOW", "MODERATE", "HIGH"), edges, edges[1:], strict=False):
        axes.text((left + right) / 2, len(rows) - 0.2, name, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, edges[-1]), ylim=(-0.6, len(rows) + 0.6), xlabel="RTSI (0 to 1)")
    axes.set_title("How far the wording of refusals moved, by cell", loc="left")
    axes.tick_params(axis="y", labelsize=7)
    axes.legend(handles=[Patch(color=COLOURS[name], label=_plain(name)) for name in _present(rows)], loc="lower right",
                title="Regime", frameon=False, fontsize=9)  # fmt: skip
    _cite(figure)
    return figure


def plot_regimes(rows: pd.DataFrame) -> Figure:
    """Quality delta against refusal delta with the regimes' boundaries, a panel a model.

    Rows without a quality delta are drawn on the right edge.
    """
    models = list(rows["model"].unique())
    figure = Figure(figsize=(10, 3.1 * int(np.ceil(len(models) / 3)) + 0.5), layout="constrained")
    panels = figure.subplots(int(np.ceil(len(models) / 3)), 3, sharex=True, sharey=True, squeeze=False)
    unknown = 1.15 * 100 * float(rows["quality_delta"].max())
    for axes, model in zip(panels.flat, models, strict=False):
        _regime_panel(axes, rows[rows["model"] == model], unknown)
        axes.set_title(model, loc="left", fontsize=10)
    for axes in panels.flat[len(models) :]:
        axes.set_visible(False)
    figure.supxlabel("Quality delta, BERTScore F1 (pp)", fontsize=10)
    figure.supylabel("Refusal-rate delta (pp)", fontsize=10)
    names = _present(rows)
    handles = [Line2D([], [], color=COLOURS[n], marker=MARKERS[n], linestyle="", label=_plain(n)) for n in names]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9,
                  title="Quality can hold while refusals are lost", title_fontsize=12, alignment="left")  # fmt: skip
    _cite(figure)
    return figure


def plot_routing(points: pd.DataFrame, index: RTSI) -> Figure:
    """Share of lost refusals recovered against the share of cells routed to the baseline."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    routed, recovered = 100 * points["routed_share"], 100 * points["recovered_share"]
    axes.plot([0, 100], [0, 100], color="#999999", linestyle=":", label="at random")
    axes.step(routed, recovered, where="post", color="#0072B2", label="by RTSI")
    front = points["pareto"]
    axes.plot(routed[front], recovered[front], "o", color="#0072B2", markersize=3.5, label="Pareto points")
    knee = points["knee"]
    axes.plot(routed[knee], recovered[knee], "D", color="#D55E00", markersize=8, label="knee")
    for threshold in (index.high, index.moderate):
        at = points[points["threshold"] >= threshold].iloc[-1]
        point = 100 * at["routed_share"], 100 * at["recovered_share"]
        axes.plot(*point, "s", color="black", markersize=6)
        axes.annotate(
            f"score ≥ {threshold:.2f}: {point[1]:.1f} %", point, (8, -14), textcoords="offset points", fontsize=9
        )
    axes.set(
        xlabel="Cells routed to the baseline (%)", ylabel="Lost refusals recovered (%)", xlim=(0, 100), ylim=(0, 103)
    )
    axes.set_title("What routing the riskiest cells buys back", loc="left")
    axes.legend(loc="lower right", frameon=False)
    _cite(figure)
    return figure


def _regime_panel(axes: Axes, rows: pd.DataFrame, unknown: float) -> None:
    rule = regimes.STUDY
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.axhline(100 * rule.refusal_loss, color="black", linewidth=0.8, linestyle="--", zorder=0)
    for quality in (rule.stable_quality, rule.near_quality):
        axes.plot([100 * quality] * 2, [-75, 100 * rule.refusal_loss], color="black", lw=0.8, linestyle="--", zorder=0)
    over = [100 * rule.near_quality, 100 * rule.over_refusal]
    axes.plot([-19, over[0], over[0]], [over[1], over[1], 30], color="black", linewidth=0.8, linestyle=":", zorder=0)
    for name, group in rows.groupby("regime"):
        known = (100 * group["quality_delta"]).fillna(unknown)
        axes.scatter(
            known,
            100 * group["refusal_rate_delta"],
            color=COLOURS[str(name)],
            marker=MARKERS[str(name)],
            s=34,
            zorder=2,
        )
    _label(axes, rows[100 * rows["refusal_rate_delta"].abs() >= 10 - intervals.TOLERANCE], unknown)
    axes.set(xlim=(-19, 13), ylim=(-75, 30))


def _label(axes: Axes, rows: pd.DataFrame, unknown: float) -> None:
    """Quantizations beside their points: on the left, but on the right where another point is close on the left."""
    x = (100 * rows["quality_delta"]).fillna(unknown).to_numpy(dtype=float)
    y = 100 * rows["refusal_rate_delta"].to_numpy(dtype=float)
    for name, at_x, at_y in zip(rows["quantization"], x, y, strict=True):
        neighbour = (np.abs(y - at_y) < 5) & (x < at_x - 0.01) & (at_x - x < 8)
        offset, side = (0.7, "left") if neighbour.any() else (-0.7, "right")
        axes.annotate(name, (at_x + offset, at_y), fontsize=7, ha=side, va="center")


def _present(rows: pd.DataFrame) -> list[str]:
    return [name for name in COLOURS if (rows["regime"] == name).any()]


def _plain(name: str) -> str:
    return {"undetermined": "undetermined (no quality measured)"}.get(name, name.replace("_", " "))


def _cite(figure: Figure) -> None:
    figure.text(0.995, 0.002, SOURCE, ha="right", va="bottom", fontsize=6, color="#666666")


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return path
