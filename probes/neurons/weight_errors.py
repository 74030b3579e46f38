"""Safety units beside the weight error of what writes and what reads them: where does a unit's activation error come
from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.architectures import Architecture
from interp.checkpoint import Checkpoint
from interp.pairs.weight_error import weight_errors
from probes.harness.results import Result
from probes.neurons.metrics import scale_normalized
from probes.neurons.settings import Site
from probes.neurons.sites import Place
from probes.neurons.units import NeuronResult


@dataclass(frozen=True)
class Energy:
    """Sums of squares per row or column of weights.

    Attributes:
        weight: of the baseline's entries.
        error: of the differences from them.
    """

    weight: Float[Tensor, " unit"]
    error: Float[Tensor, " unit"]

    def relative_error(self) -> Float[Tensor, " unit"]:
        """√(error / weight), NaN where there are no weights."""
        return torch.where(self.weight > 0, (self.error / self.weight).sqrt(), torch.nan)

    def grouped(self, groups: int) -> Energy:
        """Summed over equal runs of neighbours: [groups · n] → [groups]."""
        return Energy(self.weight.view(groups, -1).sum(1), self.error.view(groups, -1).sum(1))

    def folded(self, n_units: int) -> Energy:
        """Summed over what belongs to the same unit in a matrix of one part after the other: gates, then ups."""
        return Energy(self.weight.view(-1, n_units).sum(0), self.error.view(-1, n_units).sum(0))

    def repeated(self, times: int) -> Energy:
        """Each element `times` times in a row."""
        return Energy(self.weight.repeat_interleave(times), self.error.repeat_interleave(times))


def total(parts: Sequence[Energy], n_units: int) -> Energy:
    """Elementwise sums; zeros, hence undefined errors, where there are no parts."""
    zeros = torch.zeros(n_units, dtype=torch.float64)
    return Energy(sum((p.weight for p in parts), zeros), sum((p.error for p in parts), zeros))


@dataclass(frozen=True)
class WeightErrors:
    """Energies of every linear inside the blocks.

    Attributes:
        architecture: of the model.
        rows: linear → [out].
        columns: linear → [in].
    """

    architecture: Architecture
    rows: Mapping[str, Energy]
    columns: Mapping[str, Energy]

    @classmethod
    def between(cls, baseline: Checkpoint, quantized: Checkpoint) -> WeightErrors:
        """Measure a pair, AWQ's rescaling undone."""
        tables = weight_errors(baseline, quantized)
        rows, columns = (table.groupby("module", sort=False) for table in tables)
        n_out, n_in = rows.size(), columns.size()
        return cls(
            baseline.architecture,
            {str(name): _energy(table, int(n_in[name])) for name, table in rows},
            {str(name): _energy(table, int(n_out[name])) for name, table in columns},
        )

    def written(self, place: Place, n_units: int) -> Energy:
        """The rows whose outputs make up the units.

        `resid`: rows of the attention's and MLP's output projections in blocks 0 … L. `mlp`: rows of the linears
        before the activation. `head`: rows of the value projection of the head (shared by several heads where they are
        grouped); nothing where query, key and value are one matrix.
        """
        if place.site is Site.RESID:
            return total(
                [self.rows[name] for name in self.rows if self.block(name) <= place.layer and self._out(name)], n_units
            )
        reader = str(place.reader(self.architecture))
        if place.site is Site.MLP:
            parent = reader.rpartition(".")[0] + "."
            names = [name for name in self.rows if name.startswith(parent) and name != reader]
            return total([self.rows[name].folded(n_units) for name in names], n_units)
        values = place.writer(self.architecture)
        if values is None:
            return total([], n_units)
        rows = self.rows[values]
        head_width = len(self.columns[reader].weight) // n_units
        heads = rows.grouped(len(rows.weight) // head_width)
        return heads.repeated(n_units // len(heads.weight))

    def read(self, place: Place, n_units: int) -> Energy:
        """The columns that take the units in.

        `resid`: columns of all other linears of blocks L + 1 …; none after the last block. `mlp`, `head`: columns of
        the output projection.
        """
        if place.site is Site.RESID:
            names = [name for name in self.columns if self.block(name) > place.layer and not self._out(name)]
            return total([self.columns[name] for name in names], n_units)
        return self.columns[str(place.reader(self.architecture))].grouped(n_units)

    def block(self, linear: str) -> int:
        """The layer of a linear, 0-based."""
        return int(linear.removeprefix(f"{self.architecture.blocks}.").partition(".")[0])

    def _out(self, linear: str) -> bool:
        """Whether a linear writes into the residual stream."""
        within = linear.removeprefix(f"{self.architecture.blocks}.").partition(".")[2]
        return self.architecture.writes_residual(within)


def safety_units(result: NeuronResult, baseline: Checkpoint, cells: Mapping[str, Checkpoint]) -> Result:
    """Every safety unit with its activation error and the weight errors on both sides of it.

    Table: one row per (cell, site, layer, unit), the largest contrast first, with columns
        cell, site, layer, unit: where it is, all 0-based;
        contrast, magnitude, spread: of the baseline's activations, see `probes.neurons.units.Units`;
        error: mean |h_quant − h_base| over the harmful prompts, in activation units;
        normalized_error: error / spread;
        write_error: relative error ‖Ŵ − W‖ / ‖W‖ of the rows that write the unit, see `WeightErrors.written`;
        read_error: of the columns that read it, see `WeightErrors.read`;
        reason: why a number is NaN, else "".

    Args:
        result: of `probes.neurons.measure`.
        baseline: the baseline's checkpoint.
        cells: the cells' checkpoints by the same names.
    """
    rows: list[dict[str, Any]] = []
    for cell, errors in result.errors.items():
        weights = WeightErrors.between(baseline, cells[cell])
        for place in errors:
            rows += _unit_rows(cell, place, result, weights)
    return Result("safety_units", pd.DataFrame(rows, columns=list(TABLE)), result.settings, result.warnings)


def _unit_rows(cell: str, place: Place, result: NeuronResult, weights: WeightErrors) -> list[dict[str, Any]]:
    units, error = result.units[place], result.errors[cell][place]
    columns = {
        "contrast": units.contrast,
        "magnitude": units.magnitude,
        "spread": units.spread,
        "error": error,
        "normalized_error": scale_normalized(error, units.spread),
        "write_error": weights.written(place, len(error)).relative_error(),
        "read_error": weights.read(place, len(error)).relative_error(),
    }
    safety_indices = units.safety.nonzero().flatten()
    rows = []
    for unit in safety_indices[units.contrast[safety_indices].argsort(descending=True, stable=True)].tolist():
        numbers = {name: values[unit].item() for name, values in columns.items()}
        undefined = [name for name, number in numbers.items() if number != number]
        reason = "; ".join(_WHY[name] for name in undefined)
        rows.append(
            {"cell": cell, "site": str(place.site), "layer": place.layer, "unit": unit, **numbers, "reason": reason}
        )
    return rows


TABLE = (
    *("cell", "site", "layer", "unit", "contrast", "magnitude", "spread", "error", "normalized_error"),
    *("write_error", "read_error", "reason"),
)
"""The table's columns, there even if no cell could be measured."""
_WHY = {
    "spread": "one harmless prompt has no spread",
    "normalized_error": "the unit does not vary over harmless prompts",
    "write_error": "no linear of its own writes it (query, key and value are one matrix), or its rows are zero",
    "read_error": "no block reads it, or its columns are zero",
}


def _energy(table: pd.DataFrame, entries: int) -> Energy:
    """Root mean squares over so many entries → sums of squares."""
    weight, error = (torch.tensor(table[name].to_numpy(dtype=float)) for name in ("rms_weight", "rms_error"))
    return Energy(weight.square() * entries, error.square() * entries)
