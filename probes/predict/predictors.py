"""What may predict a cell's lost refusals: which column of which probe's table, and which way is dangerous.

The signs were fixed before any table was looked at: each follows from what the measurement means. A predictor is
oriented by its sign, so that larger always means more danger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

RunTables = Mapping[str, pd.DataFrame]
"""Probe → its table, of one model; "matrix" → the model's rows of the matrix."""
RTSI = "rtsi"
_HARMFUL = {"prompts": "harmful", "category": "all"}
_STUDY_LAYER = {"prompts": "harmful", "study_layer": True}
"""Of the geometry's table, the layer at which the study takes its direction."""


@dataclass(frozen=True)
class Predictor:
    """One number per cell, known without looking at what the cell answers (but for RTSI).

    Attributes:
        name: its column.
        label: for people.
        sign: +1 where more is dangerous, −1 where less is.
        source: the probe whose table it is read from.
        needs: of the cell: "forward passes", "gradients", "completions" or "weights". For margins and attributions the
            baseline generates a few tokens per prompt, once (`probes.margin.openings.find_openings`).
        read: the column by cell; a cell that is not there is undefined.
    """

    name: str
    label: str
    sign: int
    source: str
    needs: str
    read: Callable[[pd.DataFrame], pd.Series]

    def values(self, tables: RunTables, cells: pd.Index) -> tuple[pd.Series, str]:
        """The oriented predictor of these cells, and why it is undefined where all of it is."""
        if self.source not in tables:
            return pd.Series(np.nan, index=cells), f"no table of the probe {self.source}"
        try:
            raw_values = self.read(tables[self.source])
        except KeyError as error:
            return pd.Series(np.nan, index=cells), f"the table of {self.source} has no {error}"
        values = self.sign * pd.to_numeric(raw_values, errors="coerce").reindex(cells)
        return values, "" if values.notna().any() else f"undefined in the table of {self.source}"


def column(name: str, **where: object) -> Callable[[pd.DataFrame], pd.Series]:
    """A column by cell, of the rows with these values."""

    def read(table: pd.DataFrame) -> pd.Series:
        for key, value in where.items():
            table = table[table[key] == value]
        return table.drop_duplicates("cell").set_index("cell")[name]

    return read


def _modules_moved(table: pd.DataFrame) -> pd.Series:
    """Sum over linears, and parameters outside them, of how far each moved the margin of harmful prompts, by cell."""
    rows = table[table["level"].isin(["module", "other"])]
    for key, value in _HARMFUL.items():
        rows = rows[rows[key] == value]
    return rows.assign(size=rows["attribution"].abs()).groupby("cell")["size"].sum(min_count=1)


def _share_above_null(table: pd.DataFrame) -> pd.Series:
    """Share of the error inside the refusal subspace, as a multiple of that inside matched subspaces, by cell."""
    return column("share", **_STUDY_LAYER)(table) / column("matched", **_STUDY_LAYER)(table)


PREDICTORS = (
    Predictor("margin_shift", "margin shift", -1, "margin", "forward passes", column("shift", **_HARMFUL)),
    Predictor("to_answer", "margins that change sign", 1, "margin", "forward passes", column("to_answer", **_HARMFUL)),
    Predictor(
        "expected_lost",
        "expected refusals lost",
        1,
        "margin_losses",
        "forward passes",
        column("expected_lost", fitted_on="harmful"),
    ),
    Predictor(
        "expected_lost_harmless",
        "the same, of harmless",
        1,
        "margin_losses",
        "forward passes",
        column("expected_lost", fitted_on="harmless"),
    ),
    Predictor("d_prime_shift", "d′ shift", -1, "margin_separation", "forward passes", column("d_prime_shift")),
    Predictor(
        "attribution",
        "attribution total",
        -1,
        "attribution",
        "gradients",
        column("attribution", level="total", **_HARMFUL),
    ),
    Predictor("attribution_absolute", "attribution |modules|", 1, "attribution", "gradients", _modules_moved),
    Predictor(
        "safety_normalized",
        "safety ratio, normalized",
        1,
        "matrix",
        "forward passes",
        column("safety_ratio_normalized"),
    ),
    Predictor(
        "geometry_along", "error along refusal", -1, "geometry", "forward passes", column("along", **_STUDY_LAYER)
    ),
    Predictor("geometry_share", "error in refusal subspace", 1, "geometry", "forward passes", _share_above_null),
    Predictor("safety_raw", "safety ratio", 1, "matrix", "forward passes", column("safety_ratio")),
    Predictor("cosine", "direction cosine", -1, "matrix", "forward passes", column("cosine")),
    Predictor("entropy_shift", "entropy shift", 1, "matrix", "forward passes", column("entropy_shift")),
    Predictor("confidence_shift", "confidence shift", -1, "matrix", "forward passes", column("confidence_shift")),
    Predictor(
        "back_weights",
        "weights back before alignment",
        1,
        "reversion",
        "weights",
        column("back", of="weights", where="all"),
    ),
    Predictor(
        "back_logits",
        "logits back before alignment",
        1,
        "reversion",
        "forward passes",
        column("back", of="logits", prompts="harmful"),
    ),
    Predictor("coverage", "error beyond calibration", 1, "coverage", "forward passes", column("beyond", linear="all")),
    Predictor("depth", "lowest later margin shift", -1, "depth_cells", "forward passes", column("later")),
    Predictor(
        "fragility",
        "losses of the rounded baseline",
        1,
        "fragility",
        "forward passes",
        column("expected_lost", rounding="stochastic"),
    ),
    Predictor(RTSI, "RTSI", 1, "matrix", "completions", column("rtsi_score")),
    Predictor("bits", "bits per weight", -1, "matrix", "weights", column("bits_per_weight")),
    Predictor("kl", "token KL", 1, "quality", "forward passes", column("value", metric="kl_mean")),
    Predictor("top1_flips", "top-1 flips", 1, "quality", "forward passes", column("value", metric="top1_flips")),
)
"""Ours, the study's, RTSI, and the plain controls that all of them have to beat."""
