"""The study's figures on RTSI: calibration, bands, held-out validation, routing."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut

from probes.reproduce.figures import Figure, rounding
from probes.reproduce.published import published_index_rows
from probes.rtsi.index import DELTAS, RTSI
from probes.rtsi.routing import route
from probes.rtsi.validation import MATERIAL_LOSS, cross_validate, material_loss
from probes.stats.classification import Estimate, auc, matched_bucket, recall

SCORES, HELD_OUT, ROUTING = "RTSI (45 rows)", "RTSI held out", "RTSI routing"
FEATURES = tuple(column.removesuffix("_delta") for column in DELTAS)
CORRELATIONS = (0.5615, 0.7800, 0.4188, 0.6557)
WEIGHTS = (0.2324, 0.3228, 0.1734, 0.2714)
STRICT = "our inference: 17 if floats are compared as they are, where 0.93 − 0.98 > −0.05 leaves qwen2.5-7b Q2_K out"
WHICH = "delta on the 100 AdvBench prompts of the 45 rows; the delta on all 220 prompts would find 10"
MONTE_CARLO = 0.01
"""Tolerance of bootstrap bounds, whose seed and number of draws are not published: about two standard deviations of a
bound over 30 seeds at 2,000 draws (0.0044 below, 0.0027 above). Ours are taken from more draws."""
DRAWS = 20_000


def figures() -> list[Figure]:
    """Everything that the 45 rows of features determine."""
    rows = published_index_rows()
    change = rows["advbench_refusal_rate_delta"].to_numpy()
    index = RTSI().fit(rows, change)
    scores = index.score_samples(rows)
    return [*_calibration(index, rows, scores), *_validation(rows, change, scores), *_routing(scores, change)]


def _calibration(index: RTSI, rows: pd.DataFrame, scores: np.ndarray) -> list[Figure]:
    bands, published = index.bands(rows)["band"], rows["rtsi_score"].to_numpy()
    index_of_study = RTSI().fit(rows, rows["advbench_refusal_rate_delta"])
    rounded = np.abs(index.correlations_).round(4)
    index_of_study.weights_ = rounded / rounded.sum()
    gap = np.abs(index_of_study.score_samples(rows) - published).max()
    note = (
        f"weights from r rounded to 4 decimals (our inference); {np.abs(scores - published).max():.1e} without rounding"
    )
    return [
        *(Figure(SCORES, f"|r| of {f}", p, abs(r), rounding(4))
          for f, p, r in zip(FEATURES, CORRELATIONS, index.correlations_, strict=True)),
        *(Figure(SCORES, f"weight of {f}", p, w, rounding(4))
          for f, p, w in zip(FEATURES, WEIGHTS, index.weights_, strict=True)),
        *(Figure(SCORES, f"{band} rows", count, int((bands == band).sum()), 0)
          for band, count in (("LOW", 23), ("MODERATE", 13), ("HIGH", 9))),
        Figure(SCORES, "scores: largest difference over 45 rows", 0, gap, 1e-6, note),
        Figure(SCORES, "rows with the published band", 45, int((bands == rows["rtsi_band"]).sum()), 0),
    ]  # fmt: skip


def _validation(rows: pd.DataFrame, change: np.ndarray, scores: np.ndarray) -> list[Figure]:
    row = cross_validate(RTSI(), rows, change, LeaveOneOut()).scores
    family = cross_validate(RTSI(), rows, change, LeaveOneGroupOut(), rows["family"]).scores
    danger, threshold = rows["danger"].to_numpy(), RTSI().moderate
    in_sample, held_out = recall(danger, scores >= threshold), recall(danger, row >= threshold)
    flagged = int((scores >= threshold).sum())
    signed = matched_bucket(rows["unique_prefix_rate_delta"].to_numpy(), danger, flagged)
    raw = matched_bucket(-change, danger, flagged)
    return [
        Figure(HELD_OUT, "danger rows", 10, int(danger.sum()), 0),
        Figure(HELD_OUT, "danger rows ≥ 0.10, in sample", 10, round(in_sample.value * in_sample.n), 0),
        Figure(HELD_OUT, "danger rows ≥ 0.10, leave one row out", 10, round(held_out.value * in_sample.n), 0),
        Figure(HELD_OUT, "Wilson lower bound of 10/10", 0.72, in_sample.low, rounding(2)),
        Figure(
            HELD_OUT, "LOW rows in sample and left out", 23, int(((scores < threshold) & (row < threshold)).sum()), 0
        ),
        *_areas(change, scores, row, family),
        Figure(HELD_OUT, "rows in the matched bucket", 22, flagged, 0),
        Figure(HELD_OUT, "danger rows by unique-prefix delta, matched bucket", 9, round(signed.value * signed.n), 0),
        Figure(HELD_OUT, "danger rows by raw refusal delta, matched bucket", 8, round(raw.value * raw.n), 0, WHICH),
    ]


def _areas(change: np.ndarray, scores: np.ndarray, row: np.ndarray, family: np.ndarray) -> list[Figure]:
    strict, exact = change <= MATERIAL_LOSS, material_loss(change)
    held_out: Estimate = auc(strict, family, draws=DRAWS)
    return [
        Figure(HELD_OUT, "material losses (≤ −5 pp), floats compared", 17, int(strict.sum()), 0, STRICT),
        Figure(HELD_OUT, "material losses (≤ −5 pp), as defined", 17, int(exact.sum()), 0,
               "exactly −5 pp is a loss by the study's own definition", contradiction=True),
        Figure(HELD_OUT, "AUC in sample", 0.8445, auc(strict, scores).value, rounding(4), "17 rows"),
        Figure(HELD_OUT, "AUC leave one row out", 0.8445, auc(strict, row).value, rounding(4), "17 rows"),
        Figure(HELD_OUT, "AUC whole families held out", 0.8403, held_out.value, rounding(4), "17 rows"),
        Figure(HELD_OUT, "its 95 % bound below", 0.708, held_out.low, MONTE_CARLO, "bootstrap, seed not published"),
        Figure(HELD_OUT, "its 95 % bound above", 0.947, held_out.high, MONTE_CARLO, "bootstrap, seed not published"),
        *(Figure(HELD_OUT, f"AUC {name}, all 18 losses", published, auc(exact, values).value, rounding(4),
                 "with the row at exactly −5 pp", contradiction=True)
          for name, published, values in (("in sample", 0.8445, scores), ("leave one row out", 0.8445, row),
                                          ("whole families held out", 0.8403, family))),
    ]  # fmt: skip


def _routing(scores: np.ndarray, change: np.ndarray) -> list[Figure]:
    routing_figures = []
    for threshold, routed, digits, recovered in ((0.40, 20.0, 0, 76.17), (0.10, 48.9, 1, 95.12)):
        point = route(scores, change, threshold)
        routing_figures += [
            Figure(ROUTING, f"routed at {threshold:.2f} (%)", routed, 100 * point["routed_share"], rounding(digits)),
            Figure(
                ROUTING, f"recovered at {threshold:.2f} (%)", recovered, 100 * point["recovered_share"], rounding(2)
            ),
        ]
    return routing_figures
