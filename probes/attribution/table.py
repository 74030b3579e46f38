"""An attribution as a tidy table: a row per prompt set, category, level and unit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from rich.console import Group, RenderableType
from scipy import stats
from torch import Tensor

from probes.attribution.cell import ALL
from probes.attribution.parts import Part
from probes.attribution.settings import PartKind
from probes.attribution.shares import Attribution
from probes.attribution.sign_flips import Moments, SignFlips
from probes.harness import tables
from probes.stats import intervals
from probes.stats.intervals import mean_interval

COLUMNS = (
    *("cell", "prompts", "category", "level", "layer", "module", "unit", "group", "n"),
    *("attribution", "attribution_low", "attribution_high", "first_order", "null_sd", "z", "p"),
    *("shift", "shift_low", "shift_high", "gap", "reason"),
)
"""The table's columns, there even if no cell could be measured."""
_WHOLE = ("layer", "unit", "group", "n")
SHOWN = 8
"""Rows of a printed table per cell."""

UnitShares = tuple[str, int | None, str, Float64[Tensor, "stratum unit"], Callable[[Moments], Tensor]]
"""Level, layer, module, shares summed over the prompts of each stratum, and the same of a null."""


def tabulate(
    cell: str, found: Attribution, null: SignFlips, kinds: Mapping[str, str], units: int | None
) -> pd.DataFrame:
    """The rows of one cell; columns as `probes.attribution.measure` says.

    Args:
        cell: its name.
        found: the attribution.
        null: of the same path.
        kinds: parameter → its kind, for the level "parameter".
        units: of rows, columns, groups and, by category, neurons keep so many per side, category and level, the
            largest shares; None for all. Neurons of the category "all" are kept.
    """
    frames = []
    for number, side in enumerate(found.prompts.sides):
        for category in (ALL, *(c for s, c in found.prompts.strata if s == side and c != ALL)):
            stratum_indices = found.prompts.chosen(side, None if category == ALL else category)
            compared = (null, number) if category == ALL else None
            rows = pd.DataFrame(_with_intervals(found, stratum_indices, compared, kinds))
            whole = {"neuron"} if category == ALL else set()
            frames_of_units = list(_unit_frames(found, stratum_indices, compared, units, whole))
            many = pd.concat(frames_of_units, ignore_index=True)
            frame = pd.concat([rows, *_largest(many, units, whole)], ignore_index=True)
            frames.append(
                frame.assign(cell=cell, prompts=side, category=category, n=int(found.mask(stratum_indices).sum()))
            )
    table = pd.concat(frames, ignore_index=True).assign(reason="")
    z = table["attribution"] / table["null_sd"].where(table["null_sd"] > 0)
    table = table.assign(z=z, p=2 * stats.norm.sf(np.abs(z))).reindex(columns=list(COLUMNS))
    return table.astype(dict.fromkeys(_WHOLE, "Int64"))


def _with_intervals(
    attribution: Attribution,
    stratum_indices: list[int],
    compared: tuple[SignFlips, int] | None,
    kinds: Mapping[str, str],
) -> Iterator[dict[str, Any]]:
    """Levels with a share for every prompt: total, parameter, layer, module, other, head."""
    mask = attribution.mask(stratum_indices)

    def row(level: str, values: Tensor, null: Callable[[Moments], Tensor], **where: Any) -> dict[str, Any]:
        interval = intervals.interval_columns("attribution", mean_interval(values[mask]))
        return {"level": level, **where, **interval, **_null(compared, null)}

    def parameters(names: list[str]) -> Callable[[Moments], Tensor]:
        return lambda moments: sum(
            (moments.parameter(name) for name in names), torch.zeros(moments.n_sides, dtype=torch.float64)
        )

    shift = intervals.interval_columns("shift", mean_interval(attribution.shift[mask]))
    gap = (attribution.total - attribution.shift)[mask].mean().item()
    yield row("total", attribution.total, parameters(list(attribution.parameters))) | shift | {"gap": gap}
    for kind in dict.fromkeys(kinds[name] for name in attribution.parameters):
        names = [name for name in attribution.parameters if kinds[name] == kind]
        values = torch.stack([attribution.parameters[name] for name in names]).sum(0)
        yield row("parameter", values, parameters(names), module=kind)
    for kind in (PartKind.LAYER, PartKind.MODULE, PartKind.OTHER, PartKind.HEAD):
        for part in attribution.parts.every(kind):
            where = {
                "layer": part.layer if part.layer >= 0 else None,
                "module": part.module or None,
                "unit": part.index if part.index >= 0 else None,
            }
            null_of = parameters(attribution.uses(part.module)) if kind is PartKind.OTHER else _of_part(part)
            yield row(str(kind), attribution.per_prompt(part), null_of, **where)


def _of_part(part: Part) -> Callable[[Moments], Tensor]:
    return lambda moments: moments.part(part)


def _null(compared: tuple[SignFlips, int] | None, of: Callable[[Moments], Tensor]) -> dict[str, Any]:
    """First-order share and standard deviation under random signs, on all prompts of a side."""
    if compared is None:
        return {"first_order": np.nan, "null_sd": np.nan}
    null, side = compared
    return {"first_order": of(null.first_order)[side].item(), "null_sd": of(null.variance)[side].sqrt().item()}


def _units(attribution: Attribution) -> Iterator[UnitShares]:
    """Levels with a share for every prompt category only: MLP neurons, rows and columns of weights."""
    for layer in range(attribution.parts.n_layers):
        yield "neuron", layer, "", attribution.neurons(layer), _neurons_of(layer)
    for module in attribution.rows:
        where = attribution.parts.layer_of(module) if module in attribution.parts.shapes else None
        yield "neuron_out", where, module, attribution.rows[module], _of_linear("rows", module)
        yield "neuron_in", where, module, attribution.columns[module], _of_linear("columns", module)


def _neurons_of(layer: int) -> Callable[[Moments], Tensor]:
    return lambda moments: moments.neurons(layer)


def _of_linear(axis: str, module: str) -> Callable[[Moments], Tensor]:
    return lambda moments: getattr(moments, axis)[module]


def _unit_frames(
    attribution: Attribution,
    stratum_indices: list[int],
    compared: tuple[SignFlips, int] | None,
    units: int | None,
    whole: Collection[str],
) -> Iterator[pd.DataFrame]:
    """Units of each module, the largest of them; a row for every group of a model's weights would be larger than it."""
    n, strata = int(attribution.mask(stratum_indices).sum()), torch.tensor(stratum_indices)
    for level, layer, module, sums, null in _units(attribution):
        means = sums[strata].sum(0) / n
        columns: dict[str, Any] = {"unit": np.arange(len(means)), "attribution": means.numpy()}
        if compared is not None:
            flips, side = compared
            columns["first_order"] = null(flips.first_order)[side].numpy()
            columns["null_sd"] = null(flips.variance)[side].sqrt().numpy()
        chosen = _largest_shares(means.numpy(), None if level in whole else units)
        yield pd.DataFrame(columns).iloc[chosen].assign(level=level, layer=layer, module=module or None)
    if compared is None:
        return
    for module, groups in attribution.groups.items():
        shares = (groups[compared[1]] / n).double().numpy()
        chosen = _largest_shares(shares.ravel(), units)
        unit, group = np.unravel_index(chosen, shares.shape)
        columns = {"unit": unit, "group": group, "attribution": shares.ravel()[chosen]}
        yield pd.DataFrame(columns).assign(level="group", layer=attribution.parts.layer_of(module), module=module)


def _largest_shares(shares: Float64[np.ndarray, " share"], units: int | None) -> Int64[np.ndarray, " chosen"]:
    """Where the largest shares of either sign are, in their own order; of equal ones the last, as in `_largest`."""
    if units is None:
        return np.arange(len(shares))
    return np.sort(np.abs(shares).argsort(kind="stable")[::-1][:units])


def _largest(table: pd.DataFrame, units: int | None, whole: Collection[str]) -> Iterator[pd.DataFrame]:
    """The rows of every level with the largest shares of either sign, the largest first; some levels whole."""
    for level, rows in table.groupby("level", sort=False):
        ordered = rows.iloc[rows["attribution"].abs().argsort(kind="stable")[::-1]]
        yield ordered if level in whole else ordered[:units]


TOTALS: tables.Columns = {
    "cell": tables.text("cell"),
    "prompts": tables.text("prompts"),
    "category": tables.text("category"),
    "n": tables.number("n", "d"),
    "shift (nats)": tables.interval("shift", "+.3f"),
    "sum of parts": tables.number("attribution", "+.3f"),
    "gap": tables.number("gap", "+.1e"),
    "first order": tables.number("first_order", "+.3f"),
    "z": tables.number("z", "+.1f"),
}
PARTS: tables.Columns = {
    "cell": tables.text("cell"),
    "part": lambda row: _label(row),
    "share (nats)": tables.interval("attribution", "+.4f"),
    "null sd": tables.number("null_sd", ".4f"),
    "z": tables.number("z", "+.1f"),
}


def _label(row: Any) -> str:
    """For people, as `Part.label`."""
    if row["level"] == "module":
        return Part(PartKind.MODULE, row["layer"], module=row["module"]).label
    return row["module"] if row["level"] == "other" else f"L{row['layer']} {row['level']} {row['unit']}"


def render(table: pd.DataFrame, shown: int = SHOWN) -> RenderableType:
    """Totals of all sides and categories, and the largest modules, heads and neurons of each cell."""
    rendered = [tables.render("Shift of the refusal margin", _level(table, "total"), TOTALS)]
    harmful = table[(table["prompts"] == "harmful") & (table["category"] == ALL)]
    for title, levels in (("Modules", ("module", "other")), ("Heads", ("head",)), ("MLP neurons", ("neuron",))):
        rows = harmful[harmful["level"].isin(levels) & (harmful["attribution"] != 0)]
        largest = rows.reindex(rows["attribution"].abs().sort_values(ascending=False, kind="stable").index)
        rendered.append(
            tables.render(f"{title} that moved it on harmful prompts", _first(largest, table, shown), PARTS)
        )
    return Group(*rendered)


def _level(table: pd.DataFrame, level: str) -> pd.DataFrame:
    return table[(table["level"] == level) | (table["reason"] != "")]


def _first(rows: pd.DataFrame, table: pd.DataFrame, shown: int) -> pd.DataFrame:
    """The first few rows of every cell, cells in the order of the table."""
    cells: Sequence[str] = list(dict.fromkeys(table["cell"]))
    return pd.concat([rows[rows["cell"] == cell][:shown] for cell in cells])
