"""The study's figures on the four probes."""

from __future__ import annotations

from probes.reproduce.figures import Figure, rounding
from probes.reproduce.published import published_neuron_layers, published_probes
from probes.stats.correlations import ratio_above_one

SECTION = "Four probes"


def figures() -> list[Figure]:
    """Cosines, the safety-neuron ratio and its test, and the per-layer lists behind it."""
    probes = published_probes()
    ratios = probes["safety_ratio"].dropna()
    p = ratio_above_one(ratios).p
    return [
        Figure(SECTION, "cells with a safety-neuron ratio", 11, len(ratios), 0),
        Figure(SECTION, "cells with a cosine > 0.97", 11, int((probes["cosine"] > 0.97).sum()), 0),
        Figure(SECTION, "mean safety-neuron ratio", 1.396, float(ratios.mean()), rounding(3)),
        Figure(SECTION, "one-sided t of the ratio > 1, p × 10⁷", 4.4, 1e7 * p, rounding(1)),
        *_layers(),
        *(Figure(SECTION, f"{metric} shift from the levels: largest difference", 0, gap, 0.001, "levels are rounded")
          for metric, gap in _shift_gaps().items()),
    ]  # fmt: skip


def _layers() -> list[Figure]:
    layers = published_neuron_layers()
    layer_figures = []
    for cell in published_probes().to_dict("records"):
        rows = layers[(layers["model"] == cell["model"]) & (layers["quantization"] == cell["quantization"])]
        if rows.empty:
            continue
        name, published = f"{cell['model']} {cell['quantization']}", float(cell["safety_ratio"])
        ours, largest = float(rows["ratio"].mean()), float(rows["ratio"].max())
        # A hundredth: both the cell's mean and the layers' ratios were rounded to two decimals.
        contradicts = abs(published - ours) > 0.01 + 1e-12
        note = "the mean of its own per-layer ratios is another" if contradicts else ""
        layer_figures.append(
            Figure(SECTION, f"{name}: mean of the per-layer ratios", published, ours, 0.01, note, contradicts)
        )
        layer_figures.append(
            Figure(SECTION, f"{name}: largest ratio", float(cell["safety_ratio_max"]), largest, rounding(2))
        )
    gap = float((layers["safety_error"] / layers["other_error"] - layers["ratio"]).abs().max())
    return [
        *layer_figures,
        Figure(SECTION, "per-layer ratios from their errors: largest difference", 0, gap, rounding(2)),
    ]


def _shift_gaps() -> dict[str, float]:
    probes = published_probes()
    base = probes[probes["quantization"] == "FP16"].set_index("model")
    return {
        metric: float((probes[metric] - probes["model"].map(base[metric]) - probes[f"{metric}_shift"]).abs().max())
        for metric in ("entropy", "confidence")
    }
