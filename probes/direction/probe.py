"""Measure the refusal direction of every layer: mean over harmful minus mean over harmless prompts."""

from __future__ import annotations

from math import nan
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.chat import AnyTemplate
from interp.model import HookedModel
from interp.running_stats import RunningStats
from probes.harness.comparison import Comparison, Models, compare
from probes.harness.names import BASELINE
from probes.harness.prompts import PromptSet, few_prompts
from probes.harness.residual_streams import stream_reads, streams
from probes.harness.results import Result
from probes.harness.study_layers import DIRECTION_PERCENT, layer_at


def refusal_directions(
    mean_harmful: Float[Tensor, "layer d_model"], mean_harmless: Float[Tensor, "layer d_model"]
) -> Float[Tensor, "layer d_model"]:
    """Mean over harmful − mean over harmless prompts: [layer, d_model] twice → [layer, d_model]."""
    return mean_harmful - mean_harmless


def cosine(a: Float[Tensor, "*layer d_model"], b: Float[Tensor, "*layer d_model"]) -> Float[Tensor, "*layer"]:
    """a·b / (‖a‖ ‖b‖), NaN where one of them is zero: [*layer, d_model] twice → [*layer]."""
    unit_a, unit_b = (v / torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (a, b))
    return (unit_a * unit_b).sum(-1).clamp(-1, 1)


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> Result:
    """The refusal direction (arXiv:2606.10154, probe 2; Arditi et al. 2024, arXiv:2406.11717) at every layer of every
    cell.

    The direction is the mean over harmful minus the mean over harmless prompts of `blocks.L.hook_resid_post` at the
    last prompt position; means are streamed in float64.

    Table: one row per (cell, layer), the baseline's first, with columns
        cell, layer: "baseline" or the cell's name; L, 0-based;
        study_layer: whether L is the study's, round(0.65 · number of layers);
        n_harmful, n_harmless: numbers of prompts;
        norm: Euclidean length of the direction, in units of the residual stream;
        norm_ratio: norm / the baseline's;
        cosine: to the baseline's direction at the same layer;
        reason: why a number is NaN, else "".

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> direction.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    reads = stream_reads(batch_size)
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force, reads=reads)
    directions = comparison.observe(lambda model: _directions(model, comparison, batch_size), "direction")
    study_layer = layer_at(baseline.n_layers, DIRECTION_PERCENT)
    counts = {f"n_{side}": len(texts) for side, texts in comparison.texts.items()}
    comparison.warnings += few_prompts(
        {side: len(texts) for side, texts in comparison.texts.items()}, "a mean direction"
    )
    rows = [
        {"cell": cell, "layer": layer, "study_layer": layer == study_layer, **counts, **numbers}
        for cell, cell_directions in directions.items()
        for layer, numbers in enumerate(_against(cell_directions, directions[BASELINE]))
    ]
    return comparison.result("direction", rows, study_layer=study_layer)


def _directions(model: HookedModel, comparison: Comparison, batch_size: int | None) -> Float[Tensor, "layer d_model"]:
    names = streams(model)
    means = {}
    for side, texts in comparison.texts.items():
        stats = RunningStats()

        def add(activations: dict[str, Tensor], _: Tensor, stats: RunningStats = stats) -> None:
            stats.add(torch.stack([activations[name] for name in names], dim=1))

        model.stream(texts, names, add, batch_size=batch_size)
        means[side] = stats.mean
    return refusal_directions(means["harmful"], means["harmless"])


def _against(
    directions: Float[Tensor, "layer d_model"], reference: Float[Tensor, "layer d_model"]
) -> list[dict[str, Any]]:
    """Norm, norm ratio and cosine of each layer's direction."""
    norms, reference_norms = (torch.linalg.vector_norm(d, dim=-1).tolist() for d in (directions, reference))
    cosines = cosine(directions, reference).tolist()
    return [
        {
            "norm": norm,
            "norm_ratio": norm / reference_norm if reference_norm else nan,
            "cosine": angle,
            "reason": "" if norm and reference_norm else "the harmful and harmless means are equal: no direction",
        }
        for norm, reference_norm, angle in zip(norms, reference_norms, cosines, strict=True)
    ]
