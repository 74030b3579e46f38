"""One row per cell from the tables of a run: its refusals, its quality, what the probes saw, and its regime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probes.harness.names import BASELINE
from probes.labels.label import Label
from probes.labels.moved import moved_by_cell
from probes.labels.refused import REFUSED_COLUMN, STUDY_COLUMN, by_cell, counted_by, scored_pairs
from probes.labels.refused import refused as refused_by_label
from probes.matrix.evidence import NOTHING, evidence
from probes.matrix.regimes import QUALITY, QUALITY_OF_OWN, regime_probabilities, with_regimes
from probes.stats.bootstrap import resampled_means
from probes.stats.intervals import interval_columns, rate_interval

UNQUANTIZED = "FP16"
"""What the baseline is called among quantizations."""


def refusal_rates(completions: pd.DataFrame) -> pd.DataFrame:
    """Refusals of harmful prompts and what these prompts can tell of their change, a row per cell.

    Args:
        completions: of a model, the baseline's under `probes.harness.names.BASELINE`, as
            `probes.labels.refused.with_outcomes` gives them; the same prompts for all.

    Returns:
        cell; outcome, who decided what is a refusal; n_total (scored prompts), n_unscored, n_refusals, refusal_rate
        with its Wilson interval (_low, _high), refusal_rate_delta (over the prompts that are scored in the cell and its
        baseline); what these prompts can tell of it, the columns of `probes.matrix.evidence.evidence`; the same counts
        of the study's openings: n_refusals_study_lexicon, refusal_rate_study_lexicon (_low, _high, _delta),
        lexicon_difference (_low, _high) and lexicons_disagree (`probes.labels.moved`).
    """
    refused, opened = by_cell(completions), by_cell(completions, column=STUDY_COLUMN)
    harmful = completions[completions["prompts"] == "harmful"]
    moves = moved_by_cell(completions, BASELINE)
    return pd.DataFrame(
        {
            **{"cell": cell, "outcome": counted_by(part), "n_unscored": int(refused[cell].isna().sum())},
            **_rate_columns("refusal_rate", "n_total", "n_refusals", refused[cell]),
            **_rate_columns("refusal_rate_study_lexicon", "", "n_refusals_study_lexicon", opened[cell]),
            "refusal_rate_delta": _delta(refused[BASELINE], refused[cell]),
            **(NOTHING if cell == BASELINE else evidence(*scored_pairs(refused[BASELINE], refused[cell]))),
            **moves[cell].columns(counted_by(part)),
        }
        for cell, part in ((str(cell), part) for cell, part in harmful.groupby("cell", sort=False))
    )


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


def judge_rates(judged: pd.DataFrame) -> pd.DataFrame:
    """cell, judge_refusal_rate: what the first judge calls refusals among the harmful requests' answers."""
    harmful = judged[(judged["task"] == "refusal") & judged["judge"].notna() & (judged["judge"] != Label.UNSCORED)]
    rates = refused_by_label(harmful["judge"]).astype(float).groupby(harmful["cell"], sort=False).mean()
    return rates.rename("judge_refusal_rate").reset_index()


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
    answered = rows[rows["cell"].isin(list(refused))]
    by_regime = paired_probabilities(answered, refused)
    by_row = by_regime.to_dict("records")  # the baseline has no probability: it is one by definition
    own = [by_row[place].get(regime, np.nan) for place, regime in enumerate(answered["regime"])]
    return rows.join(by_regime.add_prefix("p_").assign(p_regime=own))


def paired_probabilities(rows: pd.DataFrame, refused: Mapping[str, pd.Series], column: str = "cell") -> pd.DataFrame:
    """P(regime) of a model's rows: [rows] × regimes; prompts are resampled, the same for a cell and its baseline.

    Args:
        rows: with quality_delta, which is taken as measured.
        refused: whether each of these cells and the baseline refused each prompt (`probes.labels.refused.by_cell`).
        column: that names the cells.
    """
    baseline = refused[BASELINE]
    outcomes = [refused[cell].reindex(baseline.index).astype(float) for cell in rows[column]]
    changes = np.stack([outcome - baseline.astype(float) for outcome in outcomes])
    probabilities = regime_probabilities(rows["quality_delta"].to_numpy(dtype=float), _resampled(changes))
    return probabilities.set_axis(rows.index)


def _resampled(changes: Float[np.ndarray, "rows prompts"]) -> Float[np.ndarray, "draws rows"]:
    """Means over resampled prompts, each row's over the prompts that are scored in it; NaN where there are none."""
    scored = np.isfinite(changes)
    shares = resampled_means(scored.astype(float))
    return np.divide(
        resampled_means(np.where(scored, changes, 0)), shares, out=np.full_like(shares, np.nan), where=shares > 0
    )
