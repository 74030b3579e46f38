"""How refusals are worded: the index with its bands, and the openings of baseline and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from probes.harness.names import BASELINE
from probes.labels.study_lexicon import factorize_prefixes
from probes.report import svg
from probes.report.formatting import number, points, visible
from probes.report.run import Run
from probes.rtsi.index import REFUSAL_COLLAPSE, RTSI

OPENINGS = 8
"""Rows of the table; the rest is summed."""
REST = "other openings"
NOTABLE = 0.05
"""Change of an opening's share that is marked."""


def build_index(run: Run) -> list[dict[str, Any]] | None:
    """The index of every cell, a plot per model."""
    if not {"rtsi_band", "rtsi_score", "rtsi_reason"} <= set(run.matrix.columns):
        return None
    blocks = []
    for place, model in enumerate(run.models):
        rows = run.cells[run.cells["model"] == model]
        if len(rows):
            source = run.tables["matrix"].settings.get(model, {})
            calibration = source.get("rtsi_calibration", "") if isinstance(source, dict) else ""
            blocks.append(
                {
                    "model": model,
                    "plot": draw_index(model, rows, f"rtsi-{place}") if _stands_out(rows) else None,
                    "said": describe_index(rows),
                    "counts": rows["rtsi_band"].value_counts().to_dict(),
                    "unscored": [_unscored(row) for _, row in rows[rows["rtsi_score"].isna()].iterrows()],
                    "no_chart": _no_chart(rows),
                    "calibration": calibration,
                }
            )
    return blocks or None


@svg.styled
def draw_index(model: str, rows: pd.DataFrame, key: str) -> svg.Plot:
    """Scores as points on the bands, the highest above."""
    index = RTSI.load()
    ordered = rows.sort_values("rtsi_score", na_position="first")
    scores = ordered["rtsi_score"].to_numpy(dtype=float)
    names = [svg.short(cell) for cell in ordered["cell"]]
    figure, axes = svg.panel(height=70 + 22 * len(rows), left=svg.room(names), right=16, top=24)
    end = max(0.6, 1.08 * float(np.nanmax([0.0, *scores])))
    for name, low, high, colour in (
        ("LOW", 0, index.moderate, svg.OVER),
        ("MODERATE", index.moderate, index.high, svg.NEAR),
        ("HIGH", index.high, end, svg.DANGER),
    ):
        axes.axvspan(low, high, facecolor=colour, zorder=0)
        axes.axvline(low, color=svg.MUTED, linewidth=0.8, linestyle=(0, (3, 2)), zorder=1)
        axes.annotate(name, ((low + high) / 2, 1), (0, 4), xycoords=("data", "axes fraction"), ha="center",
                      textcoords="offset points", fontsize=svg.LABEL, color=svg.MUTED)  # fmt: skip
    places = np.arange(len(rows))
    axes.hlines(places, 0, np.nan_to_num(scores), color=svg.MUTED, linewidth=0.8, zorder=2)
    for place, score, cell, band in zip(places, scores, names, ordered["rtsi_band"], strict=True):
        if np.isnan(score):
            axes.annotate(
                visible(str(band)), (0, place), (5, 0), textcoords="offset points", va="center", fontsize=svg.LABEL
            )
        else:
            axes.plot(score, place, "o", color=svg.SERIES[0], markersize=6, markeredgecolor=svg.PAPER, zorder=3,
                      clip_on=False, gid=svg.tip(f"{cell}: {number(score, '.3f')}, {band}"))  # fmt: skip
    axes.set(xlim=(0, end), ylim=(-0.7, len(rows) - 0.3), xlabel="RTSI (0 to 1)")
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return svg.Plot(figure, key, f"Refusal Template Stability Index, {model}", describe_index(rows))


def _stands_out(rows: pd.DataFrame) -> bool:
    """Whether a score lies beyond the lowest band: else a chart of them is empty but for its left edge."""
    return bool((rows["rtsi_score"] >= RTSI.load().moderate).any())


def _unscored(row: pd.Series) -> str:
    """Why a cell has no score, and its band."""
    if row["rtsi_reason"] == REFUSAL_COLLAPSE:
        return f"{row['cell']} no longer refuses, so it has no score ({row['rtsi_band']})."
    return f"{row['cell']} is {row['rtsi_band']} without a score: {row['rtsi_reason']}."


def _no_chart(rows: pd.DataFrame) -> str:
    """Why scores that are all in the lowest band are not drawn."""
    scored = int(rows["rtsi_score"].notna().sum())
    if not scored:
        return "No chart."
    others = "other" if scored < len(rows) else "score"
    return f"The {others} is LOW: no chart." if scored == 1 else f"The {others}s are LOW: no chart."


def describe_index(rows: pd.DataFrame) -> str:
    """The range of the scores and whose is the highest, in words."""
    known = rows[rows["rtsi_score"].notna()].sort_values("rtsi_score")
    if known.empty:
        return "No cell has a score."
    lowest, highest, name = known["rtsi_score"].iloc[0], known["rtsi_score"].iloc[-1], known["cell"].iloc[-1]
    if len(known) == 1:
        return f"{name} has a score of {number(highest)}; MODERATE starts at {number(RTSI.load().moderate)}."
    return (
        f"The scores of {len(known)} cells lie between {number(lowest)} and {number(highest)} ({name}); "
        f"MODERATE starts at {number(RTSI.load().moderate)}."
    )


def build_openings(run: Run) -> list[dict[str, Any]] | None:
    """Shares of the commonest openings of refusals, a table per model."""
    blocks = [block for model in run.models if (block := _openings(run, model))]
    return blocks or None


def openings(completions: pd.DataFrame) -> pd.DataFrame:
    """Share of each opening (first five normalized words) among a cell's refusals: a row an opening, a column a cell.

    Refusals are those of the outcome that the run counts; RTSI, in its own section, is of the study's openings.

    A cell without refusals has NaN.
    """
    harmful = completions[completions["prompts"] == "harmful"]
    prefixes = factorize_prefixes(list(harmful["text"]))
    refused = harmful["refused"].fillna(False).to_numpy(dtype=bool)
    texts = np.array(prefixes.texts, dtype=object)[prefixes.codes]
    counts = pd.crosstab(texts[refused], harmful["cell"].to_numpy()[refused])
    shares = counts / counts.sum()
    return shares.reindex(columns=list(dict.fromkeys(harmful["cell"])))


def _openings(run: Run, model: str) -> dict[str, Any] | None:
    completions = run.table(model, "completions")
    if completions is None:
        return None
    shares = openings(completions)
    cells = [cell for cell in (BASELINE, *run.cell_names(model)) if cell in shares]
    if shares.empty or BASELINE not in cells:
        return None
    shares = shares[cells]
    shares = shares.loc[shares.max(axis=1).sort_values(ascending=False, kind="stable").index]
    shown, rest = shares.iloc[:OPENINGS], shares.iloc[OPENINGS:]
    top = float(np.nanmax(shares.to_numpy(dtype=float)))
    rows = [(str(opening), _shares(row, top)) for opening, row in shown.iterrows()]
    rows.sort(key=lambda row: -row[1][0]["share"] if not np.isnan(row[1][0]["share"]) else 0)
    if len(rest):
        rows.append((f"{len(rest)} {REST}", _shares(rest.sum(skipna=False), top)))
    refused = completions["refused"].fillna(False).astype(bool)
    refusals = completions[(completions["prompts"] == "harmful") & refused].groupby("cell").size()
    return {
        "model": model,
        "cells": [(cell, int(refusals.get(cell, 0))) for cell in cells],
        "rows": rows,
        "largest": _largest(shares),
    }


def _shares(row: pd.Series, top: float) -> list[dict[str, Any]]:
    """Each cell's share, how dark it is drawn, and whether it moved from the baseline's."""
    reference = float(row.iloc[0])
    shares = []
    for place, share in enumerate(row.astype(float)):
        delta = share - reference
        mark = "" if place == 0 or not abs(delta) >= NOTABLE else "▲" if delta > 0 else "▼"
        shares.append(
            {"share": share, "delta": delta, "mark": mark, "shade": 0.0 if np.isnan(share) else min(share / top, 1.0)}
        )
    return shares


def _largest(shares: pd.DataFrame) -> str:
    """The opening whose share moved most, in words."""
    deltas = shares.drop(columns=BASELINE).sub(shares[BASELINE], axis=0)
    if not deltas.notna().to_numpy().any():
        return ""
    places = deltas.abs().to_numpy(dtype=float)
    row, column = np.unravel_index(np.nanargmax(places), places.shape)
    opening, cell = list(deltas.index)[row], list(deltas)[column]
    return f"The largest change: “{opening} …” in {cell}, {points(deltas.to_numpy(dtype=float)[row, column])} points."
