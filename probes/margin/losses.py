"""The tables of the margin–noise law: refusals that each cell should lose, what it lost, and the reliability curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from probes.harness.names import BASELINE
from probes.margin.expected_losses import FITTED_ON, ExpectedLosses, Refused, Sides, expected_losses
from probes.margin.noise_law import NoiseLaw, ReliabilityBin, calibration_error, reliability
from probes.stats.intervals import Estimate, float64_array, interval_columns, wilson

MARGINS, ANSWERS = "margins", "answers"
"""What tells that a prompt is lost: the cell's margin, or the cell's answer."""
Rows = list[dict[str, Any]]


def losses(
    observed: Mapping[str, Mapping[str, Float[Tensor, " prompt"]]],
    answered: Mapping[str, Bool[np.ndarray, " prompt"] | None],
    refused: Refused | None,
    noise: NoiseLaw,
) -> tuple[Rows, Rows]:
    """The rows of `margin_losses` and of `margin_reliability`, see `probes.margin.probe.measure`.

    Args:
        observed: cell → side → margins, the baseline's first.
        answered: cell → which harmful prompts it refuses; None where it was not asked.
        refused: by the baseline, on either side; None: what has a positive margin.
        noise: of the baseline against itself.
    """
    margins = {cell: {side: float64_array(m) for side, m in sides.items()} for cell, sides in observed.items()}
    before = margins[BASELINE]
    refused = refused or {side: values > 0 for side, values in before.items()}
    expected: Rows = []
    curves: Rows = []
    for cell, after in margins.items():
        for fitted_on in FITTED_ON:
            row, curve = _of_cell(before, after, refused, fitted_on, answered[cell], noise)
            key = {"cell": cell, "fitted_on": fitted_on}
            expected.append(key | row)
            curves += [key | point for point in curve]
    return expected, curves


def _of_cell(
    before: Sides,
    after: Sides,
    refused: Refused,
    fitted_on: str,
    answered: Bool[np.ndarray, " prompt"] | None,
    noise: NoiseLaw,
) -> tuple[dict[str, Any], Rows]:
    expected = expected_losses(before, after, refused, fitted_on)
    lost = expected.crossed if answered is None else ~answered[expected.prompts]
    observed_by = {"observed_by": MARGINS if answered is None else ANSWERS}
    curve = [] if expected.reason else reliability(expected.predicted, lost)
    counts = {"lost": None if expected.reason else int(lost.sum()), "calibration_error": calibration_error(curve)}
    row = {**law_columns(expected, noise), **observed_by, **counts, "reason": expected.reason}
    return row, [observed_by | point for point in _reliability_rows(curve, expected.reason)]


def law_columns(expected: ExpectedLosses, noise: NoiseLaw) -> dict[str, Any]:
    """The law's numbers, and the prompts lost beyond the noise of the baseline itself.

    Args:
        expected: of a cell.
        noise: of the baseline against itself.
    """
    by_noise = np.nan if expected.reason else expected.under(noise)
    total = expected.total()
    beyond = Estimate(total.value - by_noise, total.low - by_noise, total.high - by_noise)
    return {
        "n_refused": expected.n_refused,
        "n": len(expected.prompts),
        "threshold": float(np.mean([half.threshold for half in expected.halves])),
        "shift": float(np.mean([half.law.shift for half in expected.halves])),
        "spread": float(np.mean([half.law.spread for half in expected.halves])),
        "by_noise": by_noise,
        **interval_columns("expected_lost", beyond),
    }


def _reliability_rows(curve: list[ReliabilityBin], reason: str) -> Iterator[dict[str, Any]]:
    undefined = ReliabilityBin(np.nan, np.nan, 0, np.nan, np.nan)
    for part in [undefined] if reason else curve:
        observed = wilson(round(part.observed * part.n), part.n) if part.n else Estimate(np.nan)
        edges = {"bin_low": part.low, "bin_high": part.high, "n": part.n, "predicted": part.predicted}
        yield edges | interval_columns("observed", observed) | {"reason": reason}
