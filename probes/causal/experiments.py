"""One cell after another through the experiments of `probes.causal`: on which prompts, ranked by what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch

from interp.model import HookedModel
from interp.pairs.alignment import aligned
from interp.quantize.cells import text_hash
from probes.attribution.cell import MarginObjective
from probes.attribution.integrated_gradients import attribute
from probes.attribution.parts import Part, Parts
from probes.attribution.settings import PartKind
from probes.attribution.shares import ATTRIBUTION_CLASSES, AttributedPrompts, Attribution
from probes.causal.activation_patching import patch_rows
from probes.causal.direction_rescue import COMPONENTS, Side, Sweep, rescue_rows
from probes.causal.direction_rescue import DRAWS as RESCUE_DRAWS
from probes.causal.exchange import Aim, Interventions
from probes.causal.rankings import (
    SITES,
    Scores,
    attribution_scores,
    contrast_scores,
    tabulated_scores,
    weight_error_scores,
)
from probes.causal.restoration import Plan, restore_rows
from probes.harness.pieces import kept
from probes.harness.prompts import PromptSet, evenly_spaced
from probes.harness.study_layers import DIRECTION_PERCENT, layer_at, layers_at
from probes.harness.token_positions import position_classes
from probes.margin.openings import Openings
from probes.margin.refusal_margin import MarginRuns
from probes.stats import intervals
from probes.stats.intervals import mean_interval

ATTRIBUTION_STEPS = 8
LAYERS = 8
"""The most layers that are patched of a model."""
FEWEST_RANKED = 16
"""Prompts of each side that rankings and directions need at least."""


@dataclass(frozen=True)
class Sample:
    """Which prompts interventions are ranked and measured on.

    Attributes:
        measured: side → rendered prompts.
        ranked: side → rendered prompts for rankings and directions: the others, if there are enough.
        instructions: the harmful requests that are measured, as they were before rendering.
        held_out: whether rankings come from other prompts than measurements.
    """

    measured: dict[str, list[str]]
    ranked: dict[str, list[str]]
    instructions: list[str]
    held_out: bool

    @classmethod
    def of(cls, texts: dict[str, list[str]], harmful: PromptSet, count: int) -> Sample:
        """Take `count` prompts of each side, evenly spaced, for measuring, and the rest for ranking."""
        indices = {side: evenly_spaced(len(side_texts), count) for side, side_texts in texts.items()}
        measured = {side: [side_texts[index] for index in indices[side]] for side, side_texts in texts.items()}
        rest = {
            side: [t for i, t in enumerate(side_texts) if i not in set(indices[side])]
            for side, side_texts in texts.items()
        }
        held_out = min(map(len, rest.values())) >= FEWEST_RANKED
        instructions = [harmful.instructions[index] for index in indices["harmful"]]
        return cls(measured, rest if held_out else texts, instructions, held_out)


@dataclass(frozen=True)
class Experiments:
    """Everything but the models.

    Attributes:
        sample: the prompts.
        openings: of the baseline.
        attribution: a table, or None to compute it.
        plan: of the curves.
        rescue: whether to do `causal_rescue`.
        where: whether to do `causal_patch`.
        batch_size: prompts per forward pass.
    """

    sample: Sample
    openings: Openings
    attribution: pd.DataFrame | None
    plan: Plan
    rescue: bool
    where: bool
    batch_size: int | None

    def tables(self, name: str, baseline: HookedModel, cell: HookedModel) -> dict[str, list[dict[str, Any]]]:
        """Rows of every table for one cell."""
        with aligned(cell, baseline):
            sides = {
                side: Side(side, texts, MarginRuns.of(baseline, texts, self.openings, self.batch_size))
                for side, texts in self.sample.measured.items()
            }
            harmful = sides["harmful"]
            models = Interventions(baseline, cell, harmful.runs, harmful.texts, Parts.of(baseline))
            rows = {"causal": [_headline(models)]}
            if self.plan.aims:
                rankings = self._rankings(models, name)
                rows["causal_restore"] = restore_rows(models, rankings, self.plan)
            if self.rescue:
                pairs = min(map(len, self.sample.ranked.values()))
                sweep = Sweep(
                    layers_at(baseline.n_layers),
                    components=min(COMPONENTS, pairs // 2),
                    draws=min(RESCUE_DRAWS, self.plan.draws),
                    answer_layer=layer_at(baseline.n_layers, DIRECTION_PERCENT),
                    answer_layer_draws=self.plan.draws,
                    seed=self.plan.seed,
                )
                rows["causal_rescue"] = rescue_rows(baseline, cell, self.sample.ranked, list(sides.values()), sweep)
            if self.where:
                classes = position_classes(baseline.tokenizer, models.texts, self.sample.instructions)
                rows["causal_patch"] = patch_rows(models, classes, evenly_spaced(baseline.n_layers, LAYERS))
            return rows

    def _rankings(self, models: Interventions, name: str) -> dict[PartKind, dict[str, Scores]]:
        """Scores by kind of part and name of the ranking."""
        shares = self._attribution(models) if self.attribution is None else None
        rankings: dict[PartKind, dict[str, Scores]] = {}
        for kind in self.plan.kinds:
            if shares is not None:
                rankings[kind] = {"attribution": attribution_scores(shares, kind)}
            elif self.attribution is not None:
                rankings[kind] = {"attribution": tabulated_scores(self.attribution, name, models.parts, kind)}
            if kind in SITES:
                contrast = self._contrast(models.baseline, kind)
                rankings[kind]["contrast"] = contrast
            rankings[kind]["weight_error"] = weight_error_scores(models.baseline, models.cell, models.parts, kind)
        return rankings

    def _contrast(self, baseline: HookedModel, kind: PartKind) -> Scores:
        texts = self.sample.ranked
        what = ["contrast", kind, *(text_hash(texts[side]) for side in ("harmful", "harmless"))]
        scored = partial(contrast_scores, baseline, kind, **texts, batch_size=self.batch_size)
        return kept(what, lambda: dict(scored()), (Part, PartKind))

    def _attribution(self, models: Interventions) -> Attribution:
        what = ["attribution", ATTRIBUTION_STEPS, text_hash(self.sample.ranked["harmful"])]
        return kept(what, lambda: self._attributed(models), ATTRIBUTION_CLASSES)

    def _attributed(self, models: Interventions) -> Attribution:
        texts = self.sample.ranked["harmful"]
        return attribute(
            models.baseline,
            models.cell,
            AttributedPrompts(texts, (("harmful", "all"),), torch.zeros(len(texts), dtype=torch.long)),
            MarginObjective(self.openings),
            steps=ATTRIBUTION_STEPS,
            max_steps=ATTRIBUTION_STEPS,
            batch_size=self.batch_size,
        )


def _headline(models: Interventions) -> dict[str, Any]:
    cell, baseline = models.unchanged(Aim.RESTORE)
    return {
        "n_prompts": len(cell),
        "margin_baseline": baseline.double().mean().item(),
        "margin_cell": cell.double().mean().item(),
        **intervals.interval_columns("shift", mean_interval(cell.double() - baseline.double())),
        "reason": "",
    }
