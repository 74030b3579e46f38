"""Why: how far the refusal margin moved, which modules did it, what restoring them gives back, what predicts losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.labels.refused import BROADER
from probes.predict.cells import LABELS
from probes.report import explained, svg
from probes.report.formatting import number, percent
from probes.report.run import Run

MODULES = 8
"""Rows of a cell's attribution."""
SIDES = ("harmful", "harmless")
KINDS = {"neuron": "neurons", "head": "heads", "module": "modules", "layer": "layers"}
CURVES = ("module", "neuron")
"""Kinds of parts whose curves are drawn."""


def build(run: Run) -> dict[str, Any] | None:
    """What the probes of the margin say, per model, and the prediction table of the run."""
    blocks = [block for place, model in enumerate(run.models) if (block := _model(run, model, place))]
    predict = _predict(run)
    return {"blocks": blocks, "predict": predict} if blocks or predict else None


def _model(run: Run, model: str, place: int) -> dict[str, Any] | None:
    margin, attribution = run.table(model, "margin"), run.table(model, "attribution")
    restore = run.table(model, "causal_restore")
    explanation = explained.build(run, model)
    if margin is None and attribution is None and restore is None and explanation is None:
        return None
    cells = run.cell_names(model)
    shifts = None if margin is None else _shifts(margin)
    return {
        "model": model,
        "explained": explanation,
        "margin": None if shifts is None else draw_shifts(shifts, cells, f"margin-{place}"),
        "said": "" if shifts is None else _said(shifts),
        "attribution": [] if attribution is None else _attributions(attribution, cells),
        "restore": None if restore is None else _restore(restore, cells, place),
    }


def _shifts(margin: pd.DataFrame) -> pd.DataFrame:
    """The rows over all prompts of a side, without the baseline's."""
    is_shift = margin["shift"].notna() & (margin["cell"] != "baseline")
    return margin[is_shift & (margin["category"] == "all")] if "category" in margin else margin[is_shift]


def _said(shifts: pd.DataFrame) -> str:
    """How many cells' margins moved beyond chance, and which moved furthest."""
    harmful = shifts[shifts["prompts"] == "harmful"]
    if harmful.empty:
        return ""
    worst = harmful.sort_values("shift").iloc[0]
    below = int((harmful["shift_high"] < 0).sum())
    shift, low, high = (number(worst[name], "+.2f") for name in ("shift", "shift_low", "shift_high"))
    return (
        f"On harmful prompts the margin fell beyond chance in {below} of {len(harmful)} cells. Lowest: "
        f"{worst['cell']}, {shift} [{low}, {high}] nats; on {percent(worst['to_answer'])} % of prompts it fell below "
        "0, even odds of a refusal's opening."
    )


@svg.styled
def draw_shifts(shifts: pd.DataFrame, cells: Sequence[str], key: str) -> svg.Plot:
    """Mean shift of the margin per cell with its interval, harmful and harmless prompts."""
    known = [cell for cell in cells if (shifts["cell"] == cell).any()]
    figure, axes = svg.panel(height=78 + 26 * len(known), left=svg.room(known), right=16, top=28)
    axes.axvline(0, color=svg.MUTED, linewidth=0.8)
    for place, (side, offset) in enumerate(zip(SIDES, (0.14, -0.14), strict=True)):
        style = svg.look(place)
        for row in _records(shifts[(shifts["prompts"] == side) & shifts["cell"].isin(known)]):
            height = len(known) - 1 - known.index(str(row["cell"])) + offset
            axes.plot([row["shift_low"], row["shift_high"]], [height] * 2, color=style.color, linewidth=1.4)
            told = f"{row['cell']}, {side}: {number(row['shift'], '+.2f')} nats"
            axes.plot(row["shift"], height, style.marker, color=style.color, markersize=5.5, gid=svg.tip(told))
        axes.plot([], [], style.marker, color=style.color, linestyle="-", label=side, markersize=5.5)
    axes.set_yticks(range(len(known)), [svg.short(cell) for cell in reversed(known)])
    axes.set(ylim=(-0.6, len(known) - 0.4), xlabel="Shift of the refusal margin (nats)")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=svg.LABEL, borderaxespad=0.2)
    return svg.Plot(figure, key, "Shift of the refusal margin by cell", _said(shifts))


def _attributions(table: pd.DataFrame, cells: Sequence[str]) -> list[dict[str, Any]]:
    """Per cell the total and the modules with the largest shares, on harmful prompts."""
    harmful = table[(table["prompts"] == "harmful") & (table["category"] == "all")]
    blocks = []
    for cell in cells:
        rows = harmful[harmful["cell"] == cell]
        total = rows[rows["level"] == "total"]
        modules = rows[rows["level"].isin(["module", "other"]) & rows["attribution"].notna()]
        if len(total) and len(modules):
            largest = modules.loc[modules["attribution"].abs().nlargest(MODULES).index]
            blocks.append({"cell": cell, "total": _records(total)[0], "n": len(modules), "modules": _records(largest)})
    return blocks


def _restore(table: pd.DataFrame, cells: Sequence[str], place: int) -> dict[str, Any]:
    """The curves of the cell whose margin fell most, and a row per cell, kind and ranking."""
    restore_rows = table[(table["aim"] == "restore") & (table["by"] == "weights") & table["kind"].isin(list(KINDS))]
    gap = (table["goal"] - table["start"]).where(table["aim"] == "restore")
    cell = str(table["cell"].to_numpy()[int(np.nanargmax(gap.to_numpy(dtype=float)))]) if gap.notna().any() else ""
    plots = []
    for kind in CURVES:
        rows = restore_rows[(restore_rows["cell"] == cell) & (restore_rows["kind"] == kind)]
        if rows["share"].notna().any():
            plots.append(draw_restore(rows, cell, kind, f"restore-{place}-{kind}"))
    controlled = restore_rows[restore_rows["random_gain"].notna() & (restore_rows["k"] < restore_rows["n_parts"])]
    order = controlled["cell"].map({name: at for at, name in enumerate(cells)})
    ranked = controlled[controlled["ranking"] == "attribution"].assign(place=order).sort_values(["place", "kind", "k"])
    return {"plots": plots, "rows": _records(ranked), "kinds": KINDS, "counted_by": BROADER}


@svg.styled
def draw_restore(rows: pd.DataFrame, cell: str, kind: str, key: str) -> svg.Plot:
    """Share of the margin's shift that comes back when the k first parts are the baseline's, by ranking."""
    figure, axes = svg.panel(width=340, height=264, right=84)
    top = int(rows["k"].max())
    axes.set_xscale("log", base=2)
    ticks = sorted({int(k) for k in rows["k"]})
    axes.set_xticks(ticks[:: max(1, len(ticks) // 6)], [str(k) for k in ticks[:: max(1, len(ticks) // 6)]])
    axes.minorticks_off()
    values = 100 * rows[["share", "random_share"]].to_numpy(dtype=float)
    axes.set(xlim=(0.9, 1.1 * top), ylim=(min(-10, np.nanmin(values)) - 3, max(105, np.nanmax(values)) + 3))
    axes.set(
        xlabel=f"{KINDS[kind].capitalize()} restored (k of {int(rows['n_parts'].max())})", ylabel="Shift recovered (%)"
    )
    for level in (0, 100):
        axes.axhline(level, color=svg.MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    random = rows[rows["random_share"].notna()].sort_values("k").drop_duplicates("k")
    scale = 100 / (random["goal"] - random["start"])
    axes.fill_between(random["k"], random["random_gain_low"] * scale, random["random_gain_high"] * scale,
                      facecolor=svg.NULL, edgecolor=svg.MUTED, linewidth=0.5, zorder=1)  # fmt: skip
    names, ends, looks = [], [], []
    for place, (ranking, curve) in enumerate(rows.groupby("ranking", sort=False)):
        curve, style = curve.sort_values("k").dropna(subset="share"), svg.look(place)
        axes.plot(curve["k"], 100 * curve["share"], color=style.color, marker=style.marker, linestyle=style.linestyle,
                  markersize=4.5, linewidth=1.3, markeredgewidth=0, zorder=3, gid=svg.tip(str(ranking)))  # fmt: skip
        middle = curve.iloc[max(0, len(curve) - 2)]
        names.append(str(ranking).replace("_", " "))
        ends.append((float(middle["k"]), float(100 * middle["share"])))
        looks.append(style)
    svg.name_points(axes, names, ends, looks)
    first = rows[(rows["ranking"] == "attribution") & rows["random_share"].notna()].sort_values("k")
    caption = _recovered(first.iloc[0], cell, kind) if len(first) else ""
    return svg.Plot(figure, key, f"Restoring {KINDS[kind]} of {cell}", caption)


def _recovered(row: pd.Series, cell: str, kind: str) -> str:
    return (
        f"{cell}: the first {int(row['k'])} of {int(row['n_parts'])} {KINDS[kind]} by attribution give back "
        f"{percent(row['share'])} % of the shift; random ones {percent(row['random_share'])} % "
        f"(p = {number(row['p'], '.3f')})."
    )


def _predict(run: Run) -> dict[str, Any] | None:
    """The prediction table, best first, with the labels that some cells have."""
    if "predict" not in run.tables:
        return None
    table = run.tables["predict"].table
    labels = [label for label in LABELS if f"{label}_auc" in table and table[f"{label}_auc"].notna().any()]
    known = table[table["spearman"].notna()]
    if known.empty:
        return None
    order = f"{labels[0]}_auc" if labels else "spearman"
    columns = [(label, label.replace("_", " "), int(known[f"{label}_positives"].max())) for label in labels]
    return {"rows": _records(known.sort_values(order, ascending=False, kind="stable")), "labels": columns}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
