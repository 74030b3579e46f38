"""Cells × metrics in one table: joined, checked, with deltas from each model's baseline and their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import InputError
from probes.harness.engine_marks import COLUMN as ACROSS_ENGINES
from probes.harness.engine_marks import ENGINE, mark
from probes.matrix.evidence import unpaired
from probes.matrix.regimes import REGIMES, regime_probabilities, with_regimes
from probes.matrix.rows import paired_probabilities
from probes.matrix.settings import cell_name
from probes.stats.bootstrap import DRAWS, deltas_from_rates, resampled_rates
from probes.stats.intervals import Estimate, wilson

KEY = ["model", "quantization"]
BASELINE = "baseline"
UNQUANTIZED = ("FP16", "BF16", "F16", "FP32")
FALLBACK = "Q8_0"
"""The baseline of a model without an unquantized cell."""
MOST_PROMPTS = 10**9
"""No study asks more; a larger n is a damaged table."""


def join(cell_tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Join per-cell tables on (model, quantization) and resolve each row's baseline.

    Args:
        cell_tables: name → table with the columns `model` and `quantization` and any others. All hold the same cells; a
            value that was not measured is NaN. A column that several tables have must agree where both have a value.

    Returns:
        One row per cell, ordered as in the first table, with a column `baseline` (a quantization of the same model).

    Raises:
        InputError: a table lacks a key, a cell is missing or twice, tables contradict each other, or a model has no
            baseline or two.
    """
    if not cell_tables:
        raise InputError("No tables to join", "at least one table of cells")
    indexed = {name: _indexed(name, table) for name, table in cell_tables.items()}
    (first_name, matrix), *others = indexed.items()
    for name, table in others:
        _check_same_cells(first_name, matrix.index, name, table.index)
        matrix = _merge(matrix, table, name)
    return resolve_baselines(matrix.reset_index())


def resolve_baselines(cells: pd.DataFrame) -> pd.DataFrame:
    """Fill the column `baseline`: as given, else the unquantized cell, else Q8_0.

    Raises:
        InputError: a model has no baseline, or two, or a baseline that is no row of the table.
    """
    resolved = [_baseline_of(str(model), rows) for model, rows in cells.groupby("model", sort=False)]
    by_model = dict(zip(cells["model"].drop_duplicates(), resolved, strict=True))
    return cells.assign(baseline=cells["model"].map(by_model))


def is_baseline(matrix: pd.DataFrame) -> pd.Series:
    """Which rows are baselines."""
    return matrix["quantization"] == matrix[BASELINE]


def check_rates(matrix: pd.DataFrame, metrics: Iterable[str]) -> None:
    """Refuse rates outside [0, 1], and `<metric>_n` that are not positive whole numbers.

    Raises:
        InputError: naming the cell and the column.
    """
    for metric in metrics:
        if metric not in matrix:
            raise InputError(f"The matrix has no column {metric}", f"one of {', '.join(map(str, matrix.columns))}")
        _check_numbers(matrix, [metric, *(f"{metric}_{suffix}" for suffix in ("n", "low", "high"))])
        _refuse(matrix, metric, ~matrix[metric].between(0, 1) & matrix[metric].notna(), "a rate in [0, 1]")
        if f"{metric}_n" in matrix:
            n = matrix[f"{metric}_n"]
            wrong = ((n < 1) | (n % 1 != 0) | (n > MOST_PROMPTS)).where(n.notna(), matrix[metric].notna())
            _refuse(matrix, f"{metric}_n", wrong, f"a whole number, 1 ≤ n ≤ {MOST_PROMPTS}")


def add_deltas(matrix: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Add `<metric>_delta`: cell − its model's baseline, 0 for the baselines themselves."""
    keys = pd.MultiIndex.from_frame(matrix[KEY])
    baselines = pd.MultiIndex.from_arrays([matrix["model"], matrix[BASELINE]])
    deltas = {
        f"{metric}_delta": matrix[metric].to_numpy() - matrix[metric].set_axis(keys).reindex(baselines).to_numpy()
        for metric in metrics
    }
    return matrix.assign(**deltas)


def add_intervals(matrix: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Add `<metric>_low` and `<metric>_high` to each rate: Wilson's 95 % interval where there is a `<metric>_n`.

    Without one they stay what the matrix says, and undefined where it says nothing.
    """
    bounds: dict[str, Any] = {}
    for metric in metrics:
        if f"{metric}_n" in matrix:
            rates = [_rate(rate, n) for rate, n in zip(matrix[metric], matrix[f"{metric}_n"], strict=True)]
            bounds |= {f"{metric}_low": [rate.low for rate in rates], f"{metric}_high": [rate.high for rate in rates]}
        else:
            bounds |= {name: np.nan for name in (f"{metric}_low", f"{metric}_high") if name not in matrix}
    return matrix.assign(**bounds)


def _rate(rate: Any, n: Any) -> Estimate:
    return Estimate(np.nan) if pd.isna(rate) or pd.isna(n) else wilson(float(rate) * int(n), int(n))


def _indexed(name: str, table: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in KEY if column not in table]
    if missing:
        raise InputError(
            f"The table {name} has no column {', '.join(missing)}", "model and quantization, one row a cell"
        )
    if table.empty:
        raise InputError(f"The table {name} has no rows", "one row a cell")
    nameless = table[KEY].isna().any(axis=1)
    if nameless.any():
        raise InputError(f"Row {int(np.flatnonzero(nameless)[0])} of {name} lacks its model or quantization")
    twice = table.duplicated(KEY)
    if twice.any():
        raise InputError(f"{cell_name(table[twice].iloc[0])} is there twice in {name}", "one row a cell")
    return table.set_index(KEY)


def _check_same_cells(first: str, cells: pd.Index, second: str, others: pd.Index) -> None:
    for here, there, extra in ((first, second, cells.difference(others)), (second, first, others.difference(cells))):
        if len(extra):
            raise InputError(
                f"{there} lacks {' '.join(map(str, extra[0]))}, which {here} has",
                "the same cells in all tables",
                "Give what was not measured as a row without a value",
            )


def _merge(matrix: pd.DataFrame, table: pd.DataFrame, name: str) -> pd.DataFrame:
    table = table.reindex(matrix.index)
    for column in table.columns.intersection(matrix.columns):
        both = matrix[column].notna() & table[column].notna()
        differs = both & (matrix[column] != table[column])
        if differs.any():
            raise InputError(
                f"{' '.join(map(str, matrix.index[differs][0]))}: {column} is {table.loc[differs, column].iloc[0]} "
                f"in {name} and {matrix.loc[differs, column].iloc[0]} in another table",
                "tables that agree",
                "Rename one of the columns",
            )
    return matrix.combine_first(table)[
        [*matrix.columns, *table.columns.difference(matrix.columns, sort=False)]
    ].reindex(matrix.index)


def _baseline_of(model: str, rows: pd.DataFrame) -> str:
    levels = list(rows["quantization"])
    named_baselines = list(rows[BASELINE].dropna().unique()) if BASELINE in rows else []
    candidates = named_baselines or [level for level in levels if level in UNQUANTIZED] or [FALLBACK]
    if len(candidates) > 1:
        raise InputError(
            f"{model} has two baselines: {', '.join(map(str, candidates))}",
            "one for each model",
            "Name it in a column baseline",
        )
    if candidates[0] not in levels:
        raise InputError(
            f"{model} has no baseline: {candidates[0]} is not among {', '.join(map(str, levels))}",
            f"an unquantized cell ({', '.join(UNQUANTIZED)}), {FALLBACK}, or a column baseline",
        )
    return str(candidates[0])


def _check_numbers(matrix: pd.DataFrame, columns: Iterable[str]) -> None:
    for column in filter(matrix.columns.__contains__, columns):
        _refuse(matrix, column, ~matrix[column].map(_is_number), "a number")


def _is_number(value: object) -> bool:
    """Or a missing value."""
    return isinstance(value, Real) or value is None or value is pd.NA or value is pd.NaT


def _refuse(matrix: pd.DataFrame, column: str, wrong: pd.Series, expected: str) -> None:
    if wrong.any():
        row = matrix[wrong].iloc[0]
        raise InputError(f"{cell_name(row)}: {column} is {row[column]}", expected)


def build(
    cell_tables: Mapping[str, pd.DataFrame],
    quality: str | None,
    rates: Sequence[str],
    *,
    refused: Mapping[str, Mapping[str, pd.Series]] = MappingProxyType({}),
    power: bool = True,
) -> pd.DataFrame:
    """Join, check, deltas, intervals, regimes, flags and actions in one go.

    Args:
        cell_tables: see `join`. A column `engine`, where the tables have one, marks rows of another engine than their
            baseline's.
        quality: column of the quality metric, or, where there are deltas only, its name without `_delta`; None where
            it was not measured, so that a row that lost refusals is undetermined.
        rates: the safety rates, `refusal_rate` first.
        refused: model → `probes.labels.refused.by_cell`, where the answers are known: P(regime) then pairs a cell with
            its baseline.
        power: whether rows whose prompts cannot tell are `unresolved`: by their paired outcomes, or by
            `refusal_rate_n` (`probes.matrix.evidence.unpaired`). The published rule knows thresholds alone.
    """
    matrix = join(cell_tables)
    check_rates(matrix, rates)
    matrix = _with_quality(add_deltas(matrix, rates), quality)
    matrix = add_intervals(_with_paired_delta(matrix), rates)
    matrix = _with_engines(matrix) if ENGINE in matrix else matrix
    matrix = unpaired(matrix) if power and "refusal_rate_n" in matrix else matrix
    return add_probabilities(with_regimes(matrix, [f"{rate}_delta" for rate in rates]), refused)


def _with_quality(matrix: pd.DataFrame, quality: str | None) -> pd.DataFrame:
    """Add `quality_metric` and `quality_delta`."""
    _check_numbers(matrix, ["bits_per_weight", "judge_refusal_rate"])
    if quality is None:
        return matrix.assign(quality_metric="", quality_delta=np.nan)
    if quality not in matrix and f"{quality}_delta" not in matrix:
        raise InputError(f"The matrix has neither {quality} nor {quality}_delta", "the quality metric's column")
    _check_numbers(matrix, [quality if quality in matrix else f"{quality}_delta"])
    matrix = add_deltas(matrix, [quality]) if quality in matrix else matrix
    named = matrix["quality_metric"] if quality == "quality" and "quality_metric" in matrix else quality
    return matrix.assign(quality_metric=named, quality_delta=matrix[f"{quality}_delta"])


def _with_paired_delta(matrix: pd.DataFrame) -> pd.DataFrame:
    """Where outcomes are paired, the change is over the prompts that are scored in the cell and its baseline."""
    if not {"n_pairs", "n_lost", "n_gained"} <= set(matrix):
        return matrix
    paired = (matrix["n_gained"] - matrix["n_lost"]) / matrix["n_pairs"]
    return matrix.assign(refusal_rate_delta=paired.fillna(matrix["refusal_rate_delta"]))


def _with_engines(matrix: pd.DataFrame) -> pd.DataFrame:
    """Mark the rows whose `engine` is not their model's baseline's."""
    engines = matrix[ENGINE].astype(object).where(matrix[ENGINE].notna(), "")
    baselines = is_baseline(matrix)
    of_baseline = matrix["model"].map(dict(zip(matrix.loc[baselines, "model"], engines[baselines], strict=True)))
    marks = [
        mark([str(engine)] if engine else [], [str(reference)] if reference else [])
        for engine, reference in zip(engines, of_baseline, strict=True)
    ]
    return matrix.assign(**{ACROSS_ENGINES: marks})


def add_probabilities(
    matrix: pd.DataFrame, refused: Mapping[str, Mapping[str, pd.Series]] = MappingProxyType({})
) -> pd.DataFrame:
    """Add `p_<regime>` to each row that is no baseline, where both refusal rates and their `refusal_rate_n` are known.

    The refusal rates are bootstrapped over prompts; the quality delta is taken as it is.

    Args:
        matrix: with regimes.
        refused: model → whether each cell refused each prompt: its cells are resampled with their baseline, the others
            each by itself, which makes the probabilities less certain than they need to be.
    """
    earlier = [f"p_{regime}" for regime in REGIMES]  # of a matrix that was made before
    matrix = matrix.drop(columns=earlier, errors="ignore")
    if "refusal_rate_n" not in matrix:
        return matrix
    known = matrix["refusal_rate"].notna()
    rates = np.full((DRAWS, len(matrix)), np.nan)
    rates[:, known] = resampled_rates(
        matrix.loc[known, "refusal_rate"].to_numpy(float), matrix.loc[known, "refusal_rate_n"].to_numpy(float)
    )
    deltas, quality = deltas_from_rates(rates, matrix), matrix["quality_delta"].to_numpy(dtype=float)
    probabilities = regime_probabilities(quality, deltas).add_prefix("p_").set_axis(matrix.index)
    for model, outcomes in refused.items():
        rows = matrix[(matrix["model"] == model) & matrix["quantization"].isin(list(outcomes))]
        paired = paired_probabilities(rows, outcomes, "quantization").add_prefix("p_")
        probabilities.loc[rows.index, paired.columns] = paired
    return matrix.join(probabilities.mask(is_baseline(matrix) | np.isnan(deltas[0])))
