"""Run the experiments of `probes.causal` on every cell: exchanges of parts, rescue along the direction, patching."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from interp.chat import AnyTemplate
from interp.errors import InputError, Unmeasurable
from interp.model import HookedModel
from interp.streaming.memory import require_in_memory
from probes.attribution.settings import PartKind
from probes.causal.activation_patching import COLUMNS as PATCH
from probes.causal.direction_rescue import COLUMNS as RESCUE
from probes.causal.exchange import Aim
from probes.causal.experiments import ATTRIBUTION_STEPS, Experiments, Sample
from probes.causal.restoration import COLUMNS as RESTORE
from probes.causal.restoration import Plan
from probes.causal.settings import KINDS, PROMPTS, Experiment
from probes.harness.comparison import Models, compare
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.labels.refused import BROADER
from probes.margin.openings import common_openings
from probes.margin.settings import Source

PLAN = Plan()
HEADLINE = ("cell", "n_prompts", "margin_baseline", "margin_cell", "shift", "shift_low", "shift_high", "reason")
SAME_PROMPTS = (
    "rankings come from the prompts that interventions are measured on, which flatters them: give more harmful prompts "
    "than --prompts"
)
GIVEN = "the attribution given is of all harmful prompts, those that it is tested on among them, which flatters it"


@dataclass(repr=False)
class CausalResult(Result):
    """The probe's result, with further tables that are written beside it; see `measure`.

    Attributes:
        experiments: `causal_restore`, `causal_rescue`, `causal_patch`, as far as they were asked for.
    """

    experiments: list[Result] = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The experiments."""
        return self.experiments


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    experiments: Sequence[Experiment] = (Experiment.ALL,),
    attribution: pd.DataFrame | None = None,
    plan: Plan = PLAN,
    prompts: Annotated[int, Field(ge=2)] = PROMPTS,
    openings: Source = "baseline",
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> CausalResult:
    """Test by intervention what made a cell's refusal margin move (`probes.margin`).

    Interventions are measured on evenly spaced prompts of each set. Rankings of parts, and refusal directions, come
    from the other prompts, so that no part is chosen by what it does on the prompts it is tested on. Cells are in the
    baseline's coordinates (`interp.pairs.alignment`). An effect's share is (margin after − start) / (goal − start);
    it is NaN
    where start and goal do not differ beyond chance. Intervals are 95 % percentile intervals over prompts drawn with
    replacement.

    Table: one row per cell with columns
        cell, n_prompts; margin_baseline, margin_cell: mean over the harmful prompts, nats;
        shift, shift_low, shift_high: cell − baseline; reason.

    `causal_restore`: one row per (cell, aim, by, kind, ranking, k), with columns
        aim: "restore": the cell is changed towards the baseline; "damage": the baseline towards the cell;
        by: "weights" (the parts' own, `probes.causal.exchange`) or "activations" (the parts' outputs on the same
            prompts, at all
            positions, which carry what came before them too);
        kind: "neuron", "head", "module", "layer"; "everything": all parameters;
        ranking: by what parts were chosen, the largest first: "attribution" (share of the shift, path-integrated,
            `probes.attribution.integrated_gradients`), "contrast" (the study's safety neurons and heads, in all
            layers), "weight_error" (‖Ŵ − W‖);
        k, n_parts, n_prompts: parts exchanged; parts there are; prompts;
        start, goal: mean margin of the model that is changed, and of the other;
        margin, gain, share (each with _low, _high): mean after the exchange, difference from start, and share;
        draws, random_gain, random_gain_low, random_gain_high, random_share: random parts, matched by layer and size
            (`probes.causal.rankings.matched_draws`): mean, 5th and 95th percentile over draws; measured at some k;
        p: (1 + draws that come as far) / (1 + draws);
        refusal_start, refusal_goal, refusal_rate (with Wilson's interval), refusal_share: of greedy answers, by the
            broader lexicon (`probes.labels.refused.refuses`);
        refusal_draws, random_refusal_rate: the same for the first few random sets;
        reason: why a share is NaN, else "".

    `causal_rescue`: one row per (cell, layer, vector, scale, prompts), with columns
        layer: at whose output, `blocks.L.hook_resid_post`; vector: "direction" (difference of means) or "subspace" (and
            principal components of the paired contrast); rank: its dimensions;
        scale: times what quantization took: the component inside of baseline − cell at the last prompt token, of each
            prompt, added at that token and all that follow;
        prompts: "harmful" or "harmless"; n_prompts;
        added_norm, gap_norm: mean length of what is added, and of baseline − cell;
        start, goal: mean margins of cell and baseline; margin, gain, share as above;
        draws, random_gain, random_gain_low, random_gain_high, random_share: the same coefficients on random subspaces,
            so vectors of the same length: mean, lowest and highest of the draws, which are few (3) but at the one layer
            where answers are generated;
        p: (1 + draws that come as far) / (1 + draws), so at least 1 / (1 + draws): 3 draws show nothing below 0.25;
        refusal_start, refusal_goal, refusal_rate, random_refusal_rate: of greedy answers, at one layer; reason.

    `causal_patch`: one row per (cell, layer, site, positions), with columns
        site: whose activation is the baseline's; positions: "instruction", "end" (of the template) or "all" tokens;
        tokens: how many a prompt has on average; start, goal, margin, gain, share as above;
        distance_start, distance: mean over prompts of |margin − the baseline's|, before and after;
        shuffled_gain, shuffled_share, shuffled_distance: with the baseline's activations on another prompt of the same
            batch (whose mean effect is the same where a margin depends on nothing but what is put in: the distance
            tells); reason.

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        experiments: which.
        attribution: the table of `python -m probes.attribution`, with the same names of cells; computed where None.
        plan: of the curves.
        prompts: how many of each side are measured.
        openings: as in `probes.margin.measure`.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`; an attribution table without a cell; a template that changes the
            request (experiment `where`).

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> causal.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    if PartKind.OTHER in plan.kinds:
        raise InputError("Parameters outside the blocks have no ranking", f"one of {', '.join(KINDS)}")
    require_in_memory(baseline, "probes.causal")
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
    sample = Sample.of(comparison.texts, harmful, prompts)
    refusal_openings = common_openings(comparison, openings)
    comparison.warnings += [] if sample.held_out else [SAME_PROMPTS]
    comparison.warnings += [GIVEN] if attribution is not None and sample.held_out else []
    wanted = _wanted(experiments)
    plan = replace(plan, aims=[aim for aim in Aim if aim in wanted])
    rescue, where = Experiment.RESCUE in wanted, Experiment.WHERE in wanted
    planned_experiments = Experiments(sample, refusal_openings, attribution, plan, rescue, where, batch_size)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("causal", *TABLES)}
    for name in cells:
        try:
            with comparison.pieces_of(
                name, openings=refusal_openings.describe(), prompts=prompts, batch_size=batch_size
            ):
                for table, observed in planned_experiments.tables(name, baseline, comparison.cell(name)).items():
                    rows[table] += [{"cell": name} | row for row in observed]
        except Unmeasurable as error:
            comparison.undefined[name] = str(error)
    settings: dict[str, Any] = {
        "openings": refusal_openings.describe(),
        "prompts": prompts,
        "held_out": sample.held_out,
        "attribution": "given" if attribution is not None else f"computed in {ATTRIBUTION_STEPS} steps",
        "plan": asdict(plan),
        "outcome": BROADER,
    }
    results = {}
    for table, columns in {"causal": HEADLINE, **TABLES}.items():
        results[table] = comparison.result(table, rows[table], **settings)
        results[table].table = results[table].table.reindex(columns=list(columns))
    measured = [results[table] for table in TABLES if MADE_BY[table] & wanted]
    return CausalResult(**vars(results["causal"]), experiments=measured)


TABLES = {"causal_restore": RESTORE, "causal_rescue": RESCUE, "causal_patch": PATCH}
MADE_BY: dict[str, set[str]] = {
    "causal_restore": {Experiment.RESTORE, Experiment.DAMAGE},
    "causal_rescue": {Experiment.RESCUE},
    "causal_patch": {Experiment.WHERE},
}


def _wanted(experiments: Collection[Experiment]) -> set[str]:
    every = {experiment for experiment in Experiment if experiment is not Experiment.ALL}
    return set(map(str, every if Experiment.ALL in experiments else experiments))
