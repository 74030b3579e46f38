"""One row per cell: what it costs in bits and refusals, whether quality hides that, and what each probe says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Group

from interp.cells import read_record
from interp.checkpoint import Checkpoint
from probes import tables
from probes.bootstrap import resampled_means
from probes.completions import Completion
from probes.intervals import rate_interval
from probes.pair import BASELINE
from probes.refusal_text import WORDING_FEATURES, refusal_features, refusals
from probes.regimes import classify, regime_probabilities
from probes.rtsi import RTSI
from probes.tables import interval_columns

UNQUANTIZED = "FP16"
"""What the baseline is called among quantizations."""
QUALITY = "bertscore_f1"

SHORT = {
    "hidden_danger": "hidden danger",
    "near_hidden_danger": "near danger",
    "over_refusal": "over-refusal",
    "manual_review": "review",
    "reject_severe_drift": "reject",
    "conservative_floor_candidate": "at floor",
    "direct_safety_eval": "evaluate",
}
"""Regimes and actions as the terminal shows them; the files have the full names."""

CELL: tables.Columns = {"cell": tables.text("cell")}
BEHAVIOUR: tables.Columns = {
    "refuses %": tables.percent_interval("refusal_rate"),
    "Δ pp": tables.percent("refusal_rate_delta", "+.1f"),
    "over-refuses %": tables.percent_interval("over_refusal_rate"),
    "Δ quality": tables.number("quality_delta", "+.3f"),
    "regime": lambda row: SHORT.get(row["regime"], row["regime"]),
    "P": tables.number("p_regime", ".2f"),
    "action": lambda row: SHORT.get(row["action"], row["action"]),
}
PROBES: tables.Columns = {
    "bits": tables.number("bits_per_weight", ".2f"),
    "Δ entropy": tables.number("entropy_shift", "+.3f"),
    "Δ margin": tables.number("margin_shift", "+.2f"),
    "cosine": tables.number("cosine", ".4f"),
    "Δ top-1": tables.number("confidence_shift", "+.3f"),
    "safety": tables.number("safety_ratio", ".2f"),
    "norm.": tables.number("safety_ratio_normalized", ".2f"),
    "p": tables.number("safety_p", ".3f"),
}
WORDING: tables.Columns = {
    "Δ dominant": tables.number("dominant_prefix_share_delta", "+.3f"),
    "Δ unique": tables.number("unique_prefix_rate_delta", "+.3f"),
    "Δ prefix entropy": tables.number("prefix_entropy_norm_delta", "+.3f"),
    "Δ tokens": tables.number("mean_tokens_refusal_delta", "+.2f"),
    "RTSI": tables.number("rtsi_score", ".2f"),
    "band": tables.text("rtsi_band"),
}
WIDE = 180
"""Characters a line must have for all columns side by side."""


def render(matrix: pd.DataFrame, width: int) -> Group:
    """The matrix of one model for a terminal so many characters wide: one table, or three where it does not fit."""
    model, n = matrix["model"].iloc[0], int(matrix["n_total"].iloc[0])
    title = f"{model}: {len(matrix)} cells, {n} harmful prompts, 95 % intervals, most refusals lost first"
    if width >= WIDE:
        return tables.render(title, matrix, {**CELL, **BEHAVIOUR, **PROBES, **WORDING})
    return Group(
        tables.render(title, matrix, {**CELL, **BEHAVIOUR}),
        tables.render(f"{model}: what the probes see", matrix, {**CELL, **PROBES}),
        tables.render(f"{model}: wording of the refusals, Δ from the baseline", matrix, {**CELL, **WORDING}),
    )


def describe_cells(checkpoints: Mapping[str, Checkpoint]) -> pd.DataFrame:
    """cell, format, bits_per_weight (linears of the blocks, scales included), note (what its writer did to it)."""
    return pd.DataFrame(
        {
            "cell": name,
            "format": checkpoint.format,
            "bits_per_weight": checkpoint.bits_per_weight(),
            "note": "; ".join(_notes(checkpoint.path)),
        }
        for name, checkpoint in checkpoints.items()
    )


def _notes(path: Path) -> Sequence[str]:
    record = read_record(path)
    return () if record is None else record.notes


def refusal_table(completions: Mapping[str, Sequence[Completion]], index: RTSI | None = None) -> pd.DataFrame:
    """Refusals of harmful prompts and the stability of their wording, a row per cell.

    Args:
        completions: cell → what it answered, the baseline under `probes.pair.BASELINE`; the same prompts for all.
        index: calibration of the RTSI score; default the one fitted on the study's published rows.

    Returns:
        cell, n_total, n_refusals, refusal_rate with its Wilson interval (_low, _high), refusal_rate_delta, the four
        wording features and their deltas (cell − baseline), token_unit, rtsi_score, rtsi_band, rtsi_reason.
    """
    table = pd.DataFrame(_refusal_row(cell, answers) for cell, answers in completions.items())
    baseline = table.set_index("cell").loc[BASELINE]
    for feature in ("refusal_rate", *WORDING_FEATURES):
        table[f"{feature}_delta"] = table[feature] - baseline[feature]
    table["token_unit"] = "tokens"
    n_baseline = np.full(len(table), baseline["n_refusals"])
    bands = (index or RTSI.load()).bands(table, table["n_refusals"], n_baseline)
    return table.join(bands.add_prefix("rtsi_"))


def _refusal_row(cell: str, answers: Sequence[Completion]) -> dict[str, object]:
    texts = [answer.text for answer in answers]
    features = refusal_features(texts, [answer.n_tokens for answer in answers])
    rate = rate_interval(torch.as_tensor(refusals(texts)))
    return {"cell": cell, **features, **interval_columns("refusal_rate", rate)}


def over_refusal_table(completions: Mapping[str, Sequence[Completion]]) -> pd.DataFrame:
    """cell, over_refusal_rate with its Wilson interval: refusals of harmless prompts."""
    refused = {cell: torch.as_tensor(refusals([a.text for a in answers])) for cell, answers in completions.items()}
    return pd.DataFrame(
        {"cell": cell, **interval_columns("over_refusal_rate", rate_interval(outcomes))}
        for cell, outcomes in refused.items()
    )


def quality_table(quality: pd.DataFrame) -> pd.DataFrame:
    """cell, quality, quality_delta, quality_metric, from `probes.quality`: BERTScore F1 against the references."""
    chosen = quality[(quality["metric"] == QUALITY) & (quality["against"] == "reference")]
    table = chosen[["cell"]].assign(quality=chosen["value"], quality_metric=QUALITY)
    baseline = float(table.loc[table["cell"] == BASELINE, "quality"].iloc[0])
    return table.assign(quality_delta=table["quality"] - baseline)


def summarize(
    cells: pd.DataFrame,
    behaviour: Sequence[pd.DataFrame],
    entropy: pd.DataFrame | None = None,
    direction: pd.DataFrame | None = None,
    calibration: pd.DataFrame | None = None,
    neurons: pd.DataFrame | None = None,
    margin: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Join the probes' tables into one row per cell, in the order of `cells`; what was not measured is NaN.

    Entropy, confidence and margin shifts are means over the harmful prompts; the cosine is the study layer's; the
    safety-neuron ratios are averages over layers at the residual stream, `safety_p` belongs to the normalized one.
    """
    matrix = cells
    for measured in behaviour:
        matrix = matrix.merge(measured, on="cell", how="left", validate="one_to_one")
    for table, (columns, choose) in zip((entropy, direction, calibration, neurons, margin), _CHOSEN, strict=True):
        if table is None:
            matrix = matrix.assign(**dict.fromkeys(columns.values(), np.nan))
            continue
        chosen = choose(table).rename(columns=columns)[["cell", *columns.values()]]
        matrix = matrix.merge(chosen, on="cell", how="left", validate="one_to_one")
    missing = [name for name in (*_RATES, "quality", "quality_delta") if name not in matrix]
    return matrix.assign(**dict.fromkeys(missing, np.nan), reason="")


_RATES = ("over_refusal_rate", "over_refusal_rate_low", "over_refusal_rate_high")
_CHOSEN: Sequence[tuple[Mapping[str, str], Callable[[pd.DataFrame], pd.DataFrame]]] = (
    ({"shift": "entropy_shift"}, lambda t: t[t["prompts"] == "harmful"]),
    ({"cosine": "cosine", "norm_ratio": "norm_ratio"}, lambda t: t[t["study_layer"] == 1]),
    ({"confidence_shift": "confidence_shift"}, lambda t: t[t["prompts"] == "harmful"]),
    (
        {
            "ratio": "safety_ratio",
            "normalized_ratio": "safety_ratio_normalized",
            "p_normalized": "safety_p",
            "verdict": "safety_verdict",
        },
        lambda t: t[(t["site"] == "resid") & t["layer"].isna()],
    ),
    (
        {"margin": "margin", "shift": "margin_shift"},
        lambda t: t[(t["prompts"] == "harmful") & (t["category"] == "all")].drop_duplicates("cell", keep="last"),
    ),
)
"""What the matrix takes from each probe: column there → column here, and from which rows."""


def add_regimes(matrix: pd.DataFrame, refused: Mapping[str, Mapping[str, Sequence[bool]]]) -> pd.DataFrame:
    """Regime, its probability and the action of every row, rows of a model ordered by how much refusal is lost.

    Args:
        matrix: rows of `summarize` with a column `model`, of all models of a study: the conservative floor needs them.
        refused: model → cell → whether it refused each harmful prompt, for P(regime): prompts are resampled, the same
            for a cell and its baseline; quality is taken as measured. A cell that is not there has no probability.
    """
    named = matrix.assign(quantization=matrix["cell"].replace(BASELINE, UNQUANTIZED), baseline=UNQUANTIZED)
    classified = classify(named, ["refusal_rate_delta"])
    parts = [_with_probability(rows, refused[str(model)]) for model, rows in classified.groupby("model", sort=False)]
    ordered = [rows.sort_values("refusal_rate_delta", kind="stable") for rows in parts]
    return pd.concat(ordered, ignore_index=True)


def _with_probability(rows: pd.DataFrame, refused: Mapping[str, Sequence[bool]]) -> pd.DataFrame:
    baseline = np.asarray(refused[BASELINE], dtype=float)
    answered = rows[rows["cell"].isin(list(refused))]
    paired = np.stack([np.asarray(refused[cell], dtype=float) - baseline for cell in answered["cell"]])
    found = regime_probabilities(answered["quality_delta"].to_numpy(dtype=float), resampled_means(paired))
    by_row = found.to_dict("records")  # the baseline has no probability: it is one by definition
    own = [by_row[place].get(regime, np.nan) for place, regime in enumerate(answered["regime"])]
    probabilities = found.add_prefix("p_").set_axis(answered.index).assign(p_regime=own)
    return rows.join(probabilities)
