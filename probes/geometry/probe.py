"""Measure refusal subspaces: principal angles, and the share of the error inside them against matched subspaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from interp.chat import AnyTemplate
from interp.errors import InputError
from interp.model import HookedModel
from probes.geometry import subspaces
from probes.geometry.cross_fit import NULLS, Layer, fit, random_halves, share_rows
from probes.geometry.settings import COMPONENTS, DRAWS, FEWEST_DRAWS
from probes.harness.comparison import Comparison, Models, compare
from probes.harness.pieces import kept
from probes.harness.prompts import PromptSet
from probes.harness.residual_streams import stream_reads, streams
from probes.harness.results import Result
from probes.harness.study_layers import DIRECTION_PERCENT, layer_at

CROSS_FIT = "subspaces and their nulls are fitted on one random half of the baseline's prompts and tested on the other"
TABLE = (
    *("cell", "layer", "study_layer", "prompts", "n", "rank", "relative_error", "share", "share_low", "share_high"),
    *(f"{name}{suffix}" for name in NULLS for suffix in ("", "_low", "_high")),
    *(f"p_{name}" for name in NULLS),
    *("activation", "activation_covariance", "activation_matched", "top", "along", "along_low", "along_high", "reason"),
)
ANGLES = ("cell", "layer", "study_layer", "which", "degrees", "degrees_halves", "reason")
"""The tables' columns, there even if no cell could be measured."""
Activations = Mapping[str, Float[Tensor, "_ layer d_model"]]
"""Side → residual stream after every block at the last prompt token."""


@dataclass(repr=False)
class GeometryResult(Result):
    """The probe's result, with the table of angles that is written beside it; see `measure`.

    Attributes:
        angles: `geometry_angles`.
    """

    angles: Result = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The angles."""
        return (self.angles,)


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    components: Annotated[int, Field(ge=0)] = COMPONENTS,
    draws: Annotated[int, Field(ge=FEWEST_DRAWS)] = DRAWS,
    seed: Annotated[int, Field(ge=0)] = 0,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> GeometryResult:
    """Whether quantization turns the refusal subspace, and whether its error falls into it more than elsewhere.

    The subspace of a layer (`probes.geometry.subspaces.refusal_subspace`) is the difference of means and the principal
    components of the paired contrast of `blocks.L.hook_resid_post` at the last prompt token. The error of a prompt is
    cell − baseline there. Error is partly a function of the activation that it distorts, so a subspace fitted on the
    same prompts would hold more of it than it should: the baseline fits the subspace on one half of the prompts, the
    error of the other half is tested, and then the other way round.

    Table: one row per (cell, layer, prompts), with columns
        cell, layer, prompts: the cell's name; L, 0-based; "harmful" or "harmless";
        study_layer: whether L is round(0.65 · number of layers);
        n, rank: number of prompts; dimensions of the subspace;
        relative_error: √(energy of the errors / energy of the baseline's activations);
        share, share_low, share_high: energy of the errors inside the subspace / all their energy, and its 95 %
            percentile interval over prompts drawn with replacement, the subspace kept;
        random, random_low, random_high, p_random: mean and central 95 % of the share inside random subspaces of the
            same rank that favour no direction, and the one-sided permutation p value of `share` among them;
        covariance, …, p_covariance: the same for subspaces spanned by Gaussian vectors with the covariance of the
            baseline's activations, both sides together around their common mean: stricter, since error goes where
            activations vary, whether or not that has to do with refusal;
        matched, …, p_matched: the strictest: standard deviations raised to the power with which these subspaces hold,
            on average, as much of the activations' variance as the refusal subspace;
        activation, activation_covariance, activation_matched: share of the activations' variance inside the refusal
            subspace, and inside the two nulls on average;
        top: share of the errors inside the top principal components of the activations, of the same rank;
        along, along_low, along_high: mean component of the error along harmful − harmless, in units of the distance of
            the means, and its 95 % t interval; −0.1 on harmful prompts: a tenth of the way towards harmless;
        reason: why a number is NaN, else "".
    p values are not corrected for the number of layers, cells and sides.

    `geometry_angles`: one row per (cell, layer, which), with columns
        cell, layer, study_layer; which: 1-based, the smallest angle first;
        degrees: principal angle between the baseline's and the cell's subspace, both of all prompts;
        degrees_halves: between the baseline's subspaces of two halves of the prompts, to see how far the choice of
            prompts alone turns it (the cell has the same prompts as the baseline);
        reason: why a number is NaN, else "".

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered; a pair is on the same line of both.
        components: principal components beside the difference of means; fewer, with a warning, for few prompts.
        draws: random subspaces per null, at least 200.
        seed: of the halves and the random subspaces.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`; fewer than two pairs; too few draws; components < 0.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> geometry.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    _check(components, draws)
    reads = stream_reads(batch_size)
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force, reads=reads)
    components = _affordable(components, comparison)
    with comparison.pieces_of(None, batch_size=batch_size):
        activations = comparison.of_baseline(
            "residual streams",
            lambda: kept(["residual streams"], lambda: _activations(baseline, comparison, batch_size)),
        )
    halves = random_halves({side: len(streams) for side, streams in activations.items()}, seed)
    layers = comparison.of_baseline(
        "refusal subspaces",
        lambda: [fit(_at(activations, layer), halves, components, seed) for layer in range(baseline.n_layers)],
        components=components,
        seed=seed,
        batch_size=batch_size,
    )
    study_layer = layer_at(baseline.n_layers, DIRECTION_PERCENT)

    def compared(cell: HookedModel) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        cell_activations = kept(["residual streams", batch_size], lambda: _activations(cell, comparison, batch_size))
        shares: list[dict[str, Any]] = []
        angles: list[dict[str, Any]] = []
        for index in range(len(layers)):
            of_layer = partial(in_layer, cell_activations, index)
            more_shares, more_angles = kept(["layer", index, components, draws, seed, batch_size], of_layer)
            shares += more_shares
            angles += more_angles
        return shares, angles

    def in_layer(cell_activations: Activations, index: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        where = {"layer": index, "study_layer": index == study_layer}
        before, after = _at(activations, index), _at(cell_activations, index)
        shares = share_rows(before, after, layers[index], draws, seed * len(layers) + index)
        angles = _angle_rows(after, layers[index], components)
        return [where | row for row in shares], [where | row for row in angles]

    rows = comparison.observe_cells(compared)
    settings = {"components": components, "draws": draws, "seed": seed, "cross_fit": CROSS_FIT}
    shares = [{"cell": cell, **row} for cell, (cell_shares, _) in rows.items() for row in cell_shares]
    angles = [{"cell": cell, **row} for cell, (_, cell_angles) in rows.items() for row in cell_angles]
    result = comparison.result("geometry", shares, study_layer=study_layer, **settings)
    turned = comparison.result("geometry_angles", angles, **settings)
    result.table = result.table.reindex(columns=list(TABLE))
    turned.table = turned.table.reindex(columns=list(ANGLES))
    return GeometryResult(**vars(result), angles=turned)


def _check(components: int, draws: int) -> None:
    if components < 0:
        raise InputError(f"{components} principal components", "0 or more")
    if draws < FEWEST_DRAWS:
        raise InputError(f"{draws} random subspaces", f"at least {FEWEST_DRAWS}")


def _affordable(components: int, comparison: Comparison) -> int:
    """Fewer components where half of the pairs cannot hold so many."""
    pairs = min(len(texts) for texts in comparison.texts.values())
    if pairs < 2:
        raise InputError("There is one pair of prompts", "at least two: one to fit a subspace, one to test it")
    most = min(pairs // 2 - 1, comparison.baseline.config.hidden_size - 1)
    if components > most:
        comparison.warnings.append(f"{components} principal components need more than {pairs} pairs: {most} are used")
    return min(components, most)


def _activations(model: HookedModel, comparison: Comparison, batch_size: int | None) -> Activations:
    names = streams(model)
    by_side = {}
    for side, texts in comparison.texts.items():
        by_name = model.activations(texts, names, batch_size=batch_size)
        by_side[side] = torch.stack([by_name[name] for name in names], dim=1)
    return by_side


def _at(activations: Activations, layer: int) -> dict[str, Float[Tensor, "_ d_model"]]:
    return {side: streams[:, layer].double() for side, streams in activations.items()}


def _angle_rows(
    after: Mapping[str, Float[Tensor, "_ d_model"]], layer: Layer | str, components: int
) -> Iterator[dict[str, Any]]:
    if isinstance(layer, str):
        yield {"reason": layer}
        return
    first, second = layer.halves
    halves = subspaces.angles(first.refusal, second.refusal)
    try:
        own = subspaces.refusal_subspace(after["harmful"], after["harmless"], components)
        turned, reason = subspaces.angles(layer.refusal, own), ""
    except InputError as error:
        turned, reason = np.full(len(halves), nan), str(error)
    for which, (angle, sampling) in enumerate(zip(turned.tolist(), halves.tolist(), strict=True), start=1):
        yield {"which": which, "degrees": angle, "degrees_halves": sampling, "reason": reason}
