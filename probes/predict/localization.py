"""Where did the loss happen? Rankings of layers, linears and neurons, scored on slides on which the place is known.

An organism whose refusal training was confined (`interp.organisms.constraints`) holds what it learned in known weights:
those that differ from the checkpoint before that training. A cell that loses refusals lost them there. Whatever claims
to find the place ranks the layers, the linears or the neurons of the MLPs; its AUC says how often a part that holds the
alignment is ranked above one that does not, and a ranking that knows nothing has 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.files import cache_directory
from interp.model import HookedModel
from interp.opening import load
from interp.pairs.scales import effective_weight, recovered_scales
from interp.quantize.settings import KINDS
from interp.quantize.write import write_cells
from probes.harness.comparison import Cells, compare
from probes.harness.names import BASELINE
from probes.harness.prompts import builtin
from probes.harness.results import Result, read_result
from probes.neurons.settings import Site
from probes.neurons.sites import Place
from probes.neurons.units import baseline_units
from probes.neurons.weight_errors import Energy, WeightErrors, total
from probes.stats.classification import auc
from probes.stats.intervals import Estimate, interval_columns, mean_interval

LEVELS = ("layer", "module", "neuron")
RANKINGS = {
    "attribution": "share of the fall of the margin (`probes.attribution`)",
    "null": "matched null: the size of the share if the errors had random signs",
    "error": "relative weight error",
    "contrast": "the study's safety-neuron contrast, of a layer the mean of its neurons",
}
"""Column of `parts` → what it is; larger means that the part is suspected."""
LOST = 0.1
"""Share of the harmful prompts: in a cell that refuses so many fewer, the place of the loss is sought."""
FEWEST_SLIDES = 3
"""An interval over fewer says nothing."""
MOVED, MOVED_MOST = "moved", "the tenth that moved most"
"""Which parts are the true ones: those that moved, or, where all did, the tenth of them that moved most."""


def change_kept(
    before: Checkpoint, aligned: Checkpoint, cell: Checkpoint, of_before: Checkpoint | None = None
) -> pd.DataFrame:
    """How much of what refusal training changed is left in a cell, linear by linear.

    With Δ = aligned − before, the share is ⟨Ŵ − before, Δ⟩ / ‖Δ‖²: 1 where the cell has the aligned weights, 0 where it
    has those from before. Where `before` is not a point of the cell's grid, its own rounding is part of Ŵ − before; the
    second share compares with the same format's cell of the checkpoint before, and is exactly 0 where no code differs.

    Args:
        before: the checkpoint before refusal training.
        aligned: the baseline, after it.
        cell: of the baseline; AWQ's rescaling is undone.
        of_before: the cell of `before` in the same format.

    Returns:
        A row per linear that moved, and one with the module "all" for all of them, with columns
            module; change: ‖Δ‖ / ‖before‖;
            kept: the share; kept_beyond_rounding: the same with the cell of `before`; NaN without one.
    """
    scales = recovered_scales(aligned, cell)
    others = None if of_before is None else recovered_scales(before, of_before)
    sums: dict[str, np.ndarray] = {}
    for name in aligned.linears():
        first = before.weight(name).double()
        change = aligned.weight(name).double() - first
        if not change.any():
            continue
        rounded = effective_weight(cell, name, scales).double()
        reference = torch.full_like(first, torch.nan)
        if of_before is not None and others is not None:
            reference = effective_weight(of_before, name, others).double()
        products = [(change * (rounded - first)).sum(), (change * (rounded - reference)).sum()]
        sums[name] = np.array([float(value) for value in (first.square().sum(), change.square().sum(), *products)])
    sums["all"] = np.sum(list(sums.values()), axis=0) if sums else np.full(4, np.nan)
    return pd.DataFrame(
        [
            {
                **{"module": name, "change": (moved / weight) ** 0.5},
                **{"kept": product / moved, "kept_beyond_rounding": beyond / moved},
            }
            for name, (weight, moved, product, beyond) in sums.items()
        ]
    )


def contrasts(baseline: HookedModel, harmful: list[str], harmless: list[str]) -> dict[int, Float[Tensor, " unit"]]:
    """Layer, 0-based → the study's contrast of its MLP neurons, see `probes.neurons.metrics.contrast`.

    Args:
        baseline: the unquantized model.
        harmful: rendered prompts that should be refused.
        harmless: rendered prompts that should be answered.
    """
    places = [Place(Site.MLP, layer) for layer in range(baseline.n_layers)]
    units = baseline_units(baseline, places, harmful, harmless, harmful[:1], draws=1, seed=0)
    return {place.layer: units[place].contrast for place in places}


@dataclass(frozen=True)
class _Change:
    """What happened to the weights on the way from one checkpoint to another.

    Attributes:
        errors: sums of squares of the linears' rows and columns.
    """

    errors: WeightErrors

    def module(self, name: str) -> Energy:
        rows = self.errors.rows[name]
        return Energy(rows.weight.sum(0, keepdim=True), rows.error.sum(0, keepdim=True))

    def layer(self, layer: int) -> Energy:
        return total([self.module(name) for name in self.errors.rows if self.errors.block(name) == layer], 1)

    def neurons(self, layer: int, n: int) -> Energy:
        place = Place(Site.MLP, layer)
        return total([self.errors.written(place, n), self.errors.read(place, n)], n)


def parts(
    before: Checkpoint,
    aligned: Checkpoint,
    cell: Checkpoint,
    attribution: pd.DataFrame,
    contrast: Mapping[int, Float[Tensor, " unit"]],
) -> pd.DataFrame:
    """Every layer, linear and MLP neuron with its true change and with what each ranking says of it.

    Args:
        before: the checkpoint before refusal training.
        aligned: the baseline.
        cell: that lost refusals.
        attribution: the rows of this cell of `probes.attribution.measure`.
        contrast: of the baseline, see `contrasts`.

    Returns:
        Columns level, layer, module, unit (null where the level has none), change (‖aligned − before‖), and those of
        `RANKINGS`; a ranking that does not apply to a level is NaN there.
    """
    truth, error = (_Change(WeightErrors.between(*pair)) for pair in ((before, aligned), (aligned, cell)))
    table = pd.DataFrame(_parts(truth, error, contrast)).astype({"layer": "Int64", "unit": "Int64"})
    shares = attribution[(attribution["prompts"] == "harmful") & (attribution["category"] == "all")]
    shares = shares[["level", "layer", "module", "unit", "attribution", "null_sd"]].rename(columns={"null_sd": "null"})
    shares = shares[shares["level"].isin(LEVELS)].astype({"layer": "Int64", "unit": "Int64"})
    joined = table.assign(key=_keys(table)).merge(
        shares.assign(key=_keys(shares))[["key", "attribution", "null"]], on="key", how="left", validate="one_to_one"
    )
    return joined.assign(attribution=-joined["attribution"]).drop(columns="key")


def _parts(truth: _Change, error: _Change, contrast: Mapping[int, Tensor]) -> Iterator[dict[str, Any]]:
    for layer, units in contrast.items():
        found = {"level": "layer", "layer": layer, "module": None, "unit": None}
        yield found | _numbers(truth.layer(layer), error.layer(layer), 0) | {"contrast": float(units.mean())}
        moved, lost = truth.neurons(layer, len(units)), error.neurons(layer, len(units))
        for unit, value in enumerate(units.tolist()):
            found = {"level": "neuron", "layer": layer, "module": None, "unit": unit}
            yield found | _numbers(moved, lost, unit) | {"contrast": value}
    for name in truth.errors.rows:
        found = {"level": "module", "layer": truth.errors.block(name), "module": name, "unit": None}
        yield found | _numbers(truth.module(name), error.module(name), 0) | {"contrast": np.nan}


def _numbers(truth: Energy, error: Energy, place: int) -> dict[str, float]:
    return {"change": float(truth.error[place].sqrt()), "error": float(error.relative_error()[place])}


def _keys(table: pd.DataFrame) -> pd.Series:
    """What tells parts apart: a linear by its name, others by where they are."""
    places = zip(table["level"], table["layer"], table["module"], table["unit"], strict=True)
    keys = [f"{level} {module if level == 'module' else f'{layer} {unit}'}" for level, layer, module, unit in places]
    return pd.Series(keys, index=table.index, dtype=object)


def true_parts(change: Float[np.ndarray, " n"]) -> tuple[Bool[np.ndarray, " n"], str]:
    """Which parts hold the alignment, and in which sense: `MOVED`, or `MOVED_MOST` where all of them moved."""
    moved = change > 0
    if not moved.all():
        return moved, MOVED
    most = np.zeros(len(change), dtype=bool)
    most[np.argsort(-change, kind="stable")[: max(1, len(change) // 10)]] = True
    return most, MOVED_MOST


def found(parts: pd.DataFrame) -> pd.DataFrame:
    """How well each ranking of one slide finds the parts that hold the alignment.

    Args:
        parts: columns level, change, and some of `RANKINGS`.

    Returns:
        A row per level and ranking, with columns level, ranking, truth (see `true_parts`), n, n_true, auc, auc_low,
        auc_high (95 % percentiles over parts drawn with replacement within either class), reason (why it is NaN).
    """
    rows = []
    for level, those in parts.groupby("level", sort=False):
        positive, truth = true_parts(those["change"].to_numpy(dtype=float))
        for ranking in (name for name in RANKINGS if name in those):
            estimate = auc(positive, those[ranking].to_numpy(dtype=float))
            counts = {"level": level, "ranking": ranking, "truth": truth, "n": len(those), "n_true": positive.sum()}
            rows.append(counts | interval_columns("auc", estimate) | {"reason": estimate.reason})
    return pd.DataFrame(rows)


def over_slides(scored: pd.DataFrame) -> pd.DataFrame:
    """The mean AUC over slides, with its t interval where they are enough: slides are independent, their parts are not.

    Args:
        scored: rows of `found` of several slides.

    Returns:
        A row per level, truth and ranking, with columns n_slides, auc, auc_low, auc_high.
    """
    rows = []
    for (level, truth, ranking), those in scored.groupby(["level", "truth", "ranking"], sort=False):
        estimate = mean_interval(those["auc"].dropna().to_numpy())
        if estimate.n < FEWEST_SLIDES:
            estimate = Estimate(estimate.value, n=estimate.n)
        counts = {"level": level, "truth": truth, "ranking": ranking, "n_slides": estimate.n}
        rows.append(counts | interval_columns("auc", estimate))
    return pd.DataFrame(rows)


@dataclass(repr=False)
class Localization(Result):
    """The result, with the tables that are written beside it; see `measure`.

    Attributes:
        slides: `localization_slides`.
        kept: `change_kept`.
    """

    slides: Result = field(kw_only=True)
    kept: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """Both."""
        return (self.slides, self.kept)


def measure(runs: Sequence[Path]) -> Localization:
    """Score the rankings on every cell of the runs that lost more than ten points, of organisms that were constrained.

    Table: see `over_slides`. `localization_slides`: the rows of `found` with model, cell, refusal_loss. `change_kept`:
    those of `change_kept` for every cell of these organisms whose checkpoint is there, with model and cell.

    Args:
        runs: folders of studies of organisms with the probe `attribution`; what they measured is opened again.

    Raises:
        InputError: no such cell, or a checkpoint that is gone.
    """
    slides, kept = [], []
    for run in runs:
        matrix = read_result(run / "matrix.json").table
        for model, rows in matrix.groupby("model", sort=False):
            document = run / str(model) / "attribution.json"
            if not document.is_file():
                continue
            attributed = read_result(document)
            losses = -rows.set_index("cell")["refusal_rate_delta"].drop(BASELINE)
            for name, scored, left in _model(attributed, losses):
                about = {"model": model, "cell": name, "refusal_loss": losses[name]}
                kept.append(left.assign(**about))
                slides += [] if scored is None else [scored.assign(**about)]
    if not slides:
        raise InputError("No cell of a constrained organism lost more than ten points and was attributed")
    table = pd.concat(slides, ignore_index=True)
    settings = {"runs": [str(run) for run in runs], "rankings": RANKINGS, "lost": LOST}
    beside = (
        Result("localization_slides", table, settings),
        Result("change_kept", pd.concat(kept, ignore_index=True), settings),
    )
    return Localization("localization", over_slides(table), settings, slides=beside[0], kept=beside[1])


def _model(attributed: Result, losses: pd.Series) -> Iterator[tuple[str, pd.DataFrame | None, pd.DataFrame]]:
    """Each cell, the scores of the rankings where it lost enough, and what it kept of the alignment."""
    from interp.organisms import before_alignment

    paths = {name: Path(about["path"]) for name, about in attributed.settings["cells"].items()}
    organism = Path(attributed.settings[BASELINE]["path"])
    before, aligned = open_checkpoint(before_alignment(organism)), open_checkpoint(organism)
    kinds = [name for name in paths if name in KINDS]
    of_before = write_cells(before.path, cache_directory() / "cells" / before.path.name, cells=kinds) if kinds else {}
    contrast = None
    for name, path in paths.items():
        cell, scored = open_checkpoint(path), None
        if losses[name] > LOST:
            contrast = contrast or _contrasts(organism, paths, attributed.settings)
            rows = attributed.table[attributed.table["cell"] == name]
            scored = found(parts(before, aligned, cell, rows, contrast))
        its_own = open_checkpoint(of_before[name]) if name in of_before else None
        yield name, scored, change_kept(before, aligned, cell, its_own)


def _contrasts(
    organism: Path, cells: Mapping[str, Path], asked: Mapping[str, Any]
) -> dict[int, Float[Tensor, " unit"]]:
    """Of the safety neurons, on the prompts that were attributed: the built-in ones, in the organism's own template."""
    sides = ("harmful", "harmless")
    prompts = [builtin(side).take(asked["prompts"][side]["n"]) for side in sides]
    others = [side for side, own in zip(sides, prompts, strict=True) if own.sha256 != asked["prompts"][side]["sha256"]]
    if others or any(asked.get(name, "auto") != "auto" for name in ("template", "system")):
        what = f"{' and '.join(others)} prompts" if others else "a template or a system prompt"
        raise InputError(
            f"{organism.name} was attributed with {what} of the study's own",
            "the built-in prompts in the model's own template, on which the rankings are compared",
            "Measure it by a study without [prompts]",
        )
    baseline = load(organism)
    texts = compare(baseline, Cells(cells, baseline), *prompts, force=True).texts
    return contrasts(baseline, texts["harmful"], texts["harmless"])
