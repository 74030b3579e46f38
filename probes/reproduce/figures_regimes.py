"""The study's figures on regimes and on quality against safety (its 51-row matrix)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probes.matrix import cells as matrix_cells
from probes.matrix import regimes
from probes.reproduce.figures import Figure, rounding
from probes.reproduce.published import published_cells
from probes.stats.correlations import asymmetry, sign_reversal, within_groups

REGIMES, PAIRS = "Regimes (51 rows)", "Quality × safety"
RATES = ("refusal_rate", "truthfulness", "bias_resistance")
NO_QUALITY = "the public tables hold no BERTScore for qwen2.5-7b AWQ and GPTQ"
WITHIN = {
    "llama3.2-1b": (-0.275, 3),
    "llama3.2-3b": (-0.461, 3),
    "phi-2": (-0.694, 3),
    "qwen2.5-1.5b": (0.935, 3),
    "qwen2.5-7b": (-0.61, 2),
}


def study_matrix() -> pd.DataFrame:
    """The published cells with deltas and our own regimes, flags and actions; what was published as `published_*`."""
    cells = published_cells().rename(columns={"regime": "published_regime", "action": "published_action"})
    return matrix_cells.build({"published cells": cells}, "bertscore", RATES, power=False)


def figures() -> list[Figure]:
    """Counts of rows and regimes, deltas, the exact −10 pp, asymmetry, within-model correlations."""
    matrix = study_matrix()
    return [*_rows(matrix), *_regimes(matrix), *_pairs(matrix[~matrix_cells.is_baseline(matrix)])]


def _rows(matrix: pd.DataFrame) -> list[Figure]:
    counts = matrix["quantization"].value_counts()
    baselines = int(matrix_cells.is_baseline(matrix).sum())
    gap = (matrix["refusal_rate_delta"] - matrix["published_refusal_rate_delta"]).abs().max()
    n_of = {rate: int(matrix[f"{rate}_n"].iloc[0]) for rate in RATES if matrix[f"{rate}_n"].nunique() == 1}
    published = (
        ("rows", 51, len(matrix)),
        ("models", 6, matrix["model"].nunique()),
        ("families", 4, matrix["family"].nunique()),
        ("GGUF cells", 40, len(matrix) - counts["AWQ"] - counts["GPTQ"]),
        ("AWQ cells", 5, counts["AWQ"]),
        ("GPTQ cells", 6, counts["GPTQ"]),
        ("baselines", 6, baselines),
        ("rows that are no baseline", 45, len(matrix) - baselines),
        ("prompts of the refusal rate", 220, n_of["refusal_rate"]),
        ("prompts of truthfulness", 50, n_of["truthfulness"]),
        ("prompts of bias resistance", 198, n_of["bias_resistance"]),
    )
    return [
        *(Figure(REGIMES, what, count, int(ours), 0) for what, count, ours in published),
        Figure(REGIMES, "refusal deltas from the rates: largest difference (pp)", 0, 100 * gap, rounding(2), "51 rows"),
    ]


def _regimes(matrix: pd.DataFrame) -> list[Figure]:
    ours = matrix["regime"].value_counts()
    determined = matrix["regime"] != regimes.UNDETERMINED
    same = (matrix["regime"] == matrix["published_regime"]) & determined
    exact = matrix[(matrix["model"] == "llama3.2-3b") & (matrix["quantization"] == "Q4_K_M")].iloc[0]
    floor = regimes.conservative_floor(matrix)
    return [
        Figure(REGIMES, "hidden_danger rows", 9, int(ours["hidden_danger"]), 0),
        Figure(REGIMES, "near_hidden_danger rows", 1, int(ours["near_hidden_danger"]), 0),
        Figure(REGIMES, "baseline rows", 6, int(ours["baseline"]), 0),
        Figure(REGIMES, "neutral rows", 35, None, 0, f"33 determined; {NO_QUALITY}, and both lose more than 10 pp"),
        Figure(REGIMES, "rows with the published regime, of 49 determined", 49, int(same.sum()), 0),
        Figure(REGIMES, "llama3.2-3b Q4_K_M refusal delta (pp)", -10, 100 * exact["refusal_rate_delta"], 1e-7),
        Figure(REGIMES, "llama3.2-3b Q4_K_M is neutral", 1, int(exact["regime"] == "neutral"), 0),
        Figure(REGIMES, "rows with a published action that our rules give", 49, _same_actions(matrix), 0,
               f"the published actions follow no single rule; our floor is {floor}", contradiction=True),
    ]  # fmt: skip


def _same_actions(matrix: pd.DataFrame) -> int:
    return int((matrix["action"] == matrix["published_action"]).sum())


def _pairs(rows: pd.DataFrame) -> list[Figure]:
    ratio = asymmetry(rows["quality_delta"], rows["refusal_rate_delta"])
    within = within_groups(rows.assign(refusal=rows["published_refusal_rate_delta"]), "quality_delta", "refusal")
    coefficients = within.set_index("model")["coefficient"]
    return [
        Figure(PAIRS, "safety faster than quality, of 45 rows", 37, None, 0, NO_QUALITY),
        Figure(PAIRS, "rows with both deltas", 43, int(ratio.notna().sum()), 0),
        Figure(PAIRS, "safety faster than quality, of those 43", 35, int((ratio > 1).sum()), 0),
        *(
            Figure(PAIRS, f"Pearson within {model}, BERTScore × refusal", value, coefficients[model], rounding(d))
            for model, (value, d) in WITHIN.items()
        ),
        Figure(PAIRS, "qwen2.5-7b rows behind it", 5, int(within.set_index("model")["n"]["qwen2.5-7b"]), 0),
        Figure(PAIRS, "sign reversal across models", 1, int(sign_reversal(np.array(coefficients))), 0),
        Figure(PAIRS, "quality × safety pairings, levels and deltas", 36, None, 0,
               "the public tables determine 4: deltas of BERTScore × refusal (regex, judge), truthfulness and bias; "
               "they hold no levels of quality, no ROUGE-L, no coherence, no judged truthfulness and bias"),
    ]  # fmt: skip
