"""Measure the error on safety units: the study's ratio, its scale-normalized form and the matched null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from interp.chat import AnyTemplate
from interp.model import HookedModel
from interp.passes import Pass
from probes.harness.comparison import Models, compare, require_models
from probes.harness.prompts import PromptSet, evenly_spaced, few_prompts
from probes.harness.study_layers import layers_at
from probes.neurons import metrics
from probes.neurons.settings import DRAWS, FEWEST_DRAWS, MOST_DRAWS, SIGNIFICANT, Site
from probes.neurons.sites import Place
from probes.neurons.units import NeuronResult, Units, baseline_units, unit_errors
from probes.stats import random_draws

N_ERROR_PROMPTS = 50
TABLE = (
    *("cell", "site", "layer", "n_units", "n_safety", "error_safety", "error_rest", "n_constant", "magnitude_match"),
    *("ratio", "matched_ratio", "p", "normalized_ratio", "matched_normalized_ratio", "p_normalized"),
    *("reason", "verdict"),
)
"""The table's columns, there even if no cell could be measured."""


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    sites: Sequence[Site] = tuple(Site),
    draws: Annotated[int, Field(ge=FEWEST_DRAWS, le=MOST_DRAWS)] = DRAWS,
    seed: Annotated[int, Field(ge=0)] = 0,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> NeuronResult:
    """The safety-neuron probe (arXiv:2606.10154, probe 4), with the controls that the study lacks.

    Safety units: at each of the study's layers the floor(5 %) of units (at least one) with the largest contrast, the
    size of mean over harmful − mean over harmless prompts *in the baseline*, at the last prompt position. Error of a
    unit: mean of |h_quant − h_base| over 50 harmful prompts. Ratio: mean error of safety units / mean error of the
    rest. Sites: `resid`, dimensions of `blocks.L.hook_resid_post`; `mlp`, neurons (Chen et al. 2024,
    arXiv:2406.14144), inputs of the down projection; `head`, per-head attention outputs, whose sizes are Euclidean
    over d_head. AWQ's rescaling of `mlp` and `head` is undone.

    Table: one row per (cell, site, layer) and one per (cell, site) with layer <NA>, the average over layers; columns
        cell, site, layer: the cell's name; "resid", "mlp" or "head"; L, 0-based, or <NA>;
        n_units, n_safety, n_constant: units of a layer; safety units; units that do not vary over harmless prompts;
        error_safety, error_rest: mean error in activation units;
        ratio: error_safety / error_rest; the average over layers is the study's number;
        matched_ratio: mean ratio of random sets with the safety units' baseline magnitudes, matched layer by layer;
        p: one-sided permutation p value of `ratio` among them;
        normalized_ratio, matched_normalized_ratio, p_normalized: the same for errors divided by the unit's standard
            deviation over harmless prompts in the baseline; units that do not vary there are left out;
        magnitude_match: mean baseline magnitude of the safety units / of the matched sets; 1 is a perfect match;
        verdict: in words, whether the effect survives its controls (rows of averages);
        reason: why a number is NaN, else "".

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        sites: which kinds of units.
        draws: random matched sets per layer.
        seed: of these sets.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> neurons.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    require_models(baseline, cells)
    layers = layers_at(baseline.n_layers)
    sites = list(dict.fromkeys(sites))
    places = [Place(site, layer) for site in sites for layer in layers]

    def reads(model: HookedModel, texts: Mapping[str, list[str]]) -> list[Pass]:
        errors = [texts["harmful"][index] for index in error_prompts(len(texts["harmful"]))]
        sides = [errors, *(texts.values() if model is baseline else ())]
        hooks = [place.hook for place in places]
        return [one for side in sides for one in model.last_tokens(side, hooks, batch_size=batch_size)]

    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force, reads=reads)
    counts = {side: len(texts) for side, texts in comparison.texts.items()}
    comparison.warnings += few_prompts(counts, "which units are the safety units")
    error_indices = error_prompts(len(comparison.texts["harmful"]))
    prompts = [comparison.texts["harmful"][index] for index in error_indices]
    units = comparison.of_baseline(
        "neurons",
        lambda: baseline_units(
            baseline, places, **comparison.texts, error_prompts=prompts, draws=draws, seed=seed, batch_size=batch_size
        ),
        sites=sites,
        draws=draws,
        seed=seed,
    )
    errors = comparison.observe_cells(lambda cell: unit_errors(cell, baseline, units, prompts, batch_size))
    rows = [row for cell in errors for site in sites for row in _rows(cell, site, layers, units, errors[cell])]
    result = comparison.result(
        "neurons",
        rows,
        layers=layers,
        sites=[str(site) for site in sites],
        error_prompts=error_indices,
        safety_percent=metrics.SAFETY_PERCENT,
        spread="sample standard deviation over harmless prompts",
        magnitude="mean size over harmless prompts",
        draws=draws,
        stratum=metrics.STRATUM,
        seed=seed,
    )
    result.table = result.table.reindex(columns=list(TABLE))
    return NeuronResult(**vars(result), units=units, errors=errors)


def error_prompts(n_harmful: int, count: int = N_ERROR_PROMPTS) -> list[int]:
    """Which harmful prompts errors are measured on."""
    return evenly_spaced(n_harmful, count)


class Effect(NamedTuple):
    """A ratio, and what matched random sets give instead.

    Attributes:
        ratio: mean error of safety units / mean error of the rest; NaN where undefined.
        null: the same for each random set.
    """

    ratio: float
    null: Float[Tensor, " draw"]

    @classmethod
    def of(cls, error: Float[Tensor, " unit"], units: Units) -> Effect:
        """The effect in one place."""
        return cls(metrics.error_ratio(error, units.safety).item(), metrics.error_ratio(error, units.matched))

    @classmethod
    def average(cls, effects: Sequence[Effect]) -> Effect:
        """Averages over layers, draw by draw, so that the null is matched layer by layer."""
        return cls(
            sum(effect.ratio for effect in effects) / len(effects), torch.stack([e.null for e in effects]).mean(0)
        )

    @property
    def p(self) -> float:
        """One-sided permutation p value."""
        return random_draws.draw_p(self.ratio, self.null)

    @property
    def matched(self) -> float:
        """Mean ratio of the random sets."""
        return self.null.mean().item()


def verdict(raw: Effect, normalized: Effect) -> str:
    """Whether safety units err more than others once scale and magnitude are accounted for, in words."""
    if isnan(raw.ratio) or isnan(normalized.ratio):
        return "undefined"
    beyond_normalized = normalized.ratio > 1 and normalized.p < SIGNIFICANT
    if raw.ratio <= 1:
        return "shows only when normalized" if beyond_normalized else "none: safety units err no more than the rest"
    controls = {
        "random units of the same magnitude err as much": raw.p >= SIGNIFICANT,
        "relative to their spread safety units err no more": not beyond_normalized,
    }
    failed = [reason for reason, failed in controls.items() if failed]
    return "goes away: " + "; ".join(failed) if failed else "survives both controls"


def _rows(
    cell: str,
    site: Site,
    layers: Sequence[int],
    units: Mapping[Place, Units],
    errors: Mapping[Place, Float[Tensor, " unit"]],
) -> list[dict[str, Any]]:
    places = [Place(site, layer) for layer in layers]
    normalized_errors = {p: metrics.scale_normalized(errors[p], units[p].spread) for p in places}
    raw = [Effect.of(errors[place], units[place]) for place in places]
    normalized = [Effect.of(normalized_errors[place], units[place]) for place in places]
    rows = [
        {"cell": cell, "site": str(site), "layer": place.layer, **_sizes(units[place], errors[place])}
        | _effects(raw_effect, normalized_effect)
        for place, raw_effect, normalized_effect in zip(places, raw, normalized, strict=True)
    ]
    average = (Effect.average(raw), Effect.average(normalized))
    rows.append({"cell": cell, "site": str(site), **_effects(*average), "verdict": verdict(*average)})
    return rows


def _sizes(units: Units, error: Float[Tensor, " unit"]) -> dict[str, Any]:
    matched = units.magnitude.expand(units.matched.shape)[units.matched].mean()
    return {
        "n_units": len(error),
        "n_safety": int(units.safety.sum()),
        "n_constant": int((units.spread == 0).sum()),
        "error_safety": error[units.safety].mean().item(),
        "error_rest": error[~units.safety].mean().item(),
        "magnitude_match": (units.magnitude[units.safety].mean() / matched).item(),
    }


def _effects(raw: Effect, normalized: Effect) -> dict[str, Any]:
    reason = ""
    if isnan(raw.ratio):
        reason = "the units outside the safety set have no error, so there is no ratio"
    elif isnan(normalized.ratio):
        reason = "too few units vary over the harmless prompts for a normalized ratio"
    return {
        "ratio": raw.ratio,
        "matched_ratio": raw.matched,
        "p": raw.p,
        "normalized_ratio": normalized.ratio,
        "matched_normalized_ratio": normalized.matched,
        "p_normalized": normalized.p,
        "reason": reason,
    }
