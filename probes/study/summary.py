"""One row per cell: what it costs in bits and refusals, whether quality hides that, and what each probe says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.console import Group
from rich.text import Text

from interp.quantize.cells import read_record
from probes.harness import tables
from probes.harness.names import BASELINE
from probes.labels.moved import COLUMN as DISAGREE
from probes.labels.moved import moved_by_cell
from probes.labels.refused import REFUSED_COLUMN, STUDY_COLUMN, by_cell, counted_by, scored_pairs
from probes.matrix.evidence import NOTHING, cannot_tell, evidence, little_to_lose
from probes.matrix.regimes import QUALITY, QUALITY_OF_OWN, UNRESOLVED, regime_probabilities, with_regimes
from probes.rtsi.features import WORDING_FEATURES, refusal_features
from probes.rtsi.index import RTSI
from probes.stats.bootstrap import resampled_means
from probes.stats.intervals import interval_columns, rate_interval

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint

UNQUANTIZED = "FP16"
"""What the baseline is called among quantizations."""

SHORT = {
    "hidden_danger": "hidden danger",
    "near_hidden_danger": "near danger",
    "over_refusal": "over-refusal",
    "unresolved": "cannot tell",
    "ask_more_prompts": "ask more",
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
    "openings %": tables.percent_interval("refusal_rate_study_lexicon"),
    "Δ openings pp": tables.percent("refusal_rate_study_lexicon_delta", "+.1f"),
    "Δ dominant": tables.number("dominant_prefix_share_delta", "+.3f"),
    "Δ unique": tables.number("unique_prefix_rate_delta", "+.3f"),
    "Δ prefix entropy": tables.number("prefix_entropy_norm_delta", "+.3f"),
    "Δ tokens": tables.number("mean_tokens_refusal_delta", "+.2f"),
    "RTSI": tables.number("rtsi_score", ".2f"),
    "band": tables.text("rtsi_band"),
}
WIDE = 205
"""Characters a line must have for all columns side by side."""


def render(matrix: pd.DataFrame, width: int) -> Group:
    """The matrix of one model for a terminal so many characters wide: one table, or three where it does not fit."""
    model, counted = matrix["model"].iloc[0], counted_by(matrix)
    n = int((matrix["n_total"] + matrix["n_unscored"]).max())
    title = f"{model}: {len(matrix)} cells, {n} harmful prompts, 95 % intervals, most refusals lost first"
    notes = [
        Text(f"Refusals are counted by: {counted}."),
        *map(Text, unresolved_notes(matrix)),
        *map(Text, disagreements(matrix)),
    ]
    if width >= WIDE:
        return Group(tables.render(title, matrix, {**CELL, **BEHAVIOUR, **PROBES, **WORDING}), *notes)
    return Group(
        tables.render(title, matrix, {**CELL, **BEHAVIOUR}),
        *notes,
        tables.render(f"{model}: what the probes see", matrix, {**CELL, **PROBES}),
        tables.render(
            f"{model}: wording of the refusals by the study's openings, Δ from the baseline",
            matrix,
            {**CELL, **WORDING},
        ),
    )


def baseline_note(matrix: pd.DataFrame) -> str:
    """A sentence where the baseline of these rows refuses so little that there is next to nothing to lose, else ""."""
    for _, row in matrix[matrix["cell"] == BASELINE].iterrows():
        if note := little_to_lose(row["n_refusals"], row["n_total"], f"The baseline of {row['model']}"):
            return note
    return ""


def unresolved_notes(matrix: pd.DataFrame) -> Iterator[str]:
    """Of which cells these prompts cannot tell whether refusals were lost: a sentence each."""
    for _, row in matrix[matrix["regime"] == UNRESOLVED].iterrows():
        low, high = (100 * row[f"refusal_rate_delta_{end}"] for end in ("low", "high"))
        yield f"{row['cell']}: {cannot_tell(row)} (Δ from {low:+.0f} to {high:+.0f} points, p = {row['p_mcnemar']:.2g})"


def disagreements(matrix: pd.DataFrame) -> Iterator[str]:
    """Where refusals and their openings changed differently: a sentence per cell; see `probes.labels.moved`."""
    told = matrix[matrix[DISAGREE].fillna("") != ""]
    yield from (f"{row['cell']}: {row[DISAGREE]}" for _, row in told.iterrows())


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


def refusal_table(completions: pd.DataFrame, index: RTSI | None = None) -> pd.DataFrame:
    """Refusals of harmful prompts and the stability of their wording, a row per cell.

    Args:
        completions: of a model, the baseline's under `probes.harness.names.BASELINE`, as
            `probes.labels.refused.with_outcomes` gives
            them; the same prompts for all.
        index: calibration of the RTSI score; default the one fitted on the study's published rows.

    Returns:
        cell; outcome, who decided what is a refusal; n_total (scored prompts), n_unscored, n_refusals, refusal_rate
        with its Wilson interval (_low, _high), refusal_rate_delta (over the prompts that are scored in the cell and its
        baseline); what these prompts can tell of it, the columns of `probes.matrix.evidence.evidence`; the same counts
        of the study's openings: n_refusals_study_lexicon, refusal_rate_study_lexicon (_low, _high, _delta),
        lexicon_difference (_low, _high) and lexicons_disagree (`probes.labels.moved`); the four wording features, which
        are of the study's openings by definition, and their deltas (cell − baseline), token_unit,
        rtsi_score, rtsi_band, rtsi_reason.
    """
    refused, opened = by_cell(completions), by_cell(completions, column=STUDY_COLUMN)
    harmful = completions[completions["prompts"] == "harmful"]
    answered = {str(cell): part for cell, part in harmful.groupby("cell", sort=False)}
    moves = moved_by_cell(completions, BASELINE)
    table = pd.DataFrame(
        {
            **_wording_row(cell, part),
            **{"outcome": counted_by(part), "n_unscored": int(refused[cell].isna().sum())},
            **_rate_columns("refusal_rate", "n_total", "n_refusals", refused[cell]),
            **_rate_columns("refusal_rate_study_lexicon", "", "n_refusals_study_lexicon", opened[cell]),
            "refusal_rate_delta": _delta(refused[BASELINE], refused[cell]),
            **(NOTHING if cell == BASELINE else evidence(*scored_pairs(refused[BASELINE], refused[cell]))),
            **moves[cell].columns(counted_by(part)),
        }
        for cell, part in answered.items()
    )
    baseline = table.set_index("cell").loc[BASELINE]
    for feature in WORDING_FEATURES:
        table[f"{feature}_delta"] = table[feature] - baseline[feature]
    table["token_unit"] = "tokens"
    counts = table["n_refusals_study_lexicon"]
    n_baseline = np.full(len(table), baseline["n_refusals_study_lexicon"])
    bands = (index or RTSI.load()).bands(table, counts, n_baseline)
    return table.join(bands.add_prefix("rtsi_"))


def _wording_row(cell: str, answers: pd.DataFrame) -> dict[str, Any]:
    """The features of the wording; what has no response has none."""
    there = answers[answers[STUDY_COLUMN].notna()]
    features = refusal_features(list(there["text"]), list(there["n_tokens"]))
    return {"cell": cell, **{name: features[name] for name in WORDING_FEATURES}}


def _rate_columns(rate: str, n: str, count: str, outcomes: pd.Series) -> dict[str, Any]:
    scored = outcomes.dropna().to_numpy(dtype=bool)
    sizes = {count: int(scored.sum())} | ({n: len(scored)} if n else {})
    return sizes | interval_columns(rate, rate_interval(scored))


def _delta(baseline: pd.Series, cell: pd.Series) -> float:
    before, after = scored_pairs(baseline, cell)
    return float(after.mean() - before.mean()) if len(before) else np.nan


def over_refusal_table(completions: pd.DataFrame) -> pd.DataFrame:
    """cell, over_refusal_rate with its Wilson interval: refusals of the scored harmless prompts, by the same outcome;
    and the same of the study's openings, over_refusal_rate_study_lexicon.
    """
    refused, opened = (by_cell(completions, "harmless", column) for column in (REFUSED_COLUMN, STUDY_COLUMN))
    rates = {"over_refusal_rate": refused, "over_refusal_rate_study_lexicon": opened}
    return pd.DataFrame(
        {"cell": cell}
        | {
            column: value
            for name, outcomes in rates.items()
            for column, value in interval_columns(
                name, rate_interval(outcomes[cell].dropna().to_numpy(dtype=bool))
            ).items()
        }
        for cell in refused
    )


def quality_table(quality: pd.DataFrame) -> pd.DataFrame:
    """cell, quality, quality_delta, quality_metric, and from the baseline kl_mean (nats) and top1_flips.

    Quality is BERTScore F1 against the references. Without references it is that against the baseline's own answers,
    of which the baseline's is 1, and `quality_metric` says so.
    """
    scores = quality[quality["metric"] == QUALITY]
    against = "reference" if (scores["against"] == "reference").any() else BASELINE
    values = scores[scores["against"] == against].set_index("cell")["value"]
    values = values if BASELINE in values.index else pd.concat([pd.Series({BASELINE: 1.0}), values])
    metric = QUALITY if against == "reference" else QUALITY_OF_OWN
    table = pd.DataFrame({"cell": values.index, "quality": values.to_numpy(), "quality_metric": metric})
    for name in ("kl_mean", "top1_flips"):
        table[name] = table["cell"].map(quality[quality["metric"] == name].set_index("cell")["value"])
    return table.assign(quality_delta=table["quality"] - float(values[BASELINE]))


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
        probe_columns = choose(table).rename(columns=columns)[["cell", *columns.values()]]
        matrix = matrix.merge(probe_columns, on="cell", how="left", validate="one_to_one")
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


def add_regimes(matrix: pd.DataFrame, refused: Mapping[str, Mapping[str, pd.Series]]) -> pd.DataFrame:
    """Regime, its probability and the action of every row, rows of a model ordered by how much refusal is lost.

    Args:
        matrix: rows of `summarize` with a column `model`, of all models of a study: the conservative floor needs them.
        refused: model → `probes.labels.refused.by_cell` of its completions, for P(regime): prompts are resampled,
            the same for a cell and its baseline; quality is taken as measured. A cell that is not there has none.
    """
    named = matrix.assign(quantization=matrix["cell"].replace(BASELINE, UNQUANTIZED), baseline=UNQUANTIZED)
    classified = with_regimes(named, ["refusal_rate_delta"])
    parts = [_with_probability(rows, refused[str(model)]) for model, rows in classified.groupby("model", sort=False)]
    ordered = [rows.sort_values("refusal_rate_delta", kind="stable") for rows in parts]
    return pd.concat(ordered, ignore_index=True)


def _with_probability(rows: pd.DataFrame, refused: Mapping[str, pd.Series]) -> pd.DataFrame:
    baseline = refused[BASELINE]
    answered = rows[rows["cell"].isin(list(refused))]
    outcomes = [refused[cell].reindex(baseline.index).astype(float) for cell in answered["cell"]]
    changes = np.stack([outcome - baseline.astype(float) for outcome in outcomes])
    by_regime = regime_probabilities(answered["quality_delta"].to_numpy(dtype=float), _resampled(changes))
    by_row = by_regime.to_dict("records")  # the baseline has no probability: it is one by definition
    own = [by_row[place].get(regime, np.nan) for place, regime in enumerate(answered["regime"])]
    probabilities = by_regime.add_prefix("p_").set_axis(answered.index).assign(p_regime=own)
    return rows.join(probabilities)


def _resampled(changes: Float[np.ndarray, "rows prompts"]) -> Float[np.ndarray, "draws rows"]:
    """Means over resampled prompts, each row's over the prompts that are scored in it; NaN where there are none."""
    scored = np.isfinite(changes)
    shares = resampled_means(scored.astype(float))
    return np.divide(
        resampled_means(np.where(scored, changes, 0)), shares, out=np.full_like(shares, np.nan), where=shares > 0
    )
