"""Explain every cell: the margin's shift, the linears to blame, what restoring them gives, the list to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from interp.chat import AnyTemplate
from interp.checkpoint import Checkpoint
from interp.errors import InputError, Unmeasurable
from interp.model import HookedModel
from interp.streaming.memory import require_in_memory
from probes.attribution.parts import Parts
from probes.causal.experiments import Sample
from probes.harness.comparison import Comparison, Models, compare
from probes.harness.names import BASELINE
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.labels.refused import BROADER
from probes.margin.openings import common_openings
from probes.margin.settings import Source
from probes.stats import intervals
from probes.why.explanation import Explanation, explain
from probes.why.page import page
from probes.why.rewriting import measure_variants, rewrite
from probes.why.rivals import measured_beside
from probes.why.settings import DRAWS, PROMPTS, SETS, SHARE

COLUMNS = (
    *("cell", "n_prompts", "margin_baseline", "margin_cell", "shift", "shift_low", "shift_high"),
    *("harmless_shift", "harmless_shift_low", "harmless_shift_high", "to_answer", "to_refusal"),
    *("attribution", "gap", "complete", "n_keep", "supported", "bits_per_weight", "kept_bits_per_weight", "reason"),
)


@dataclass(repr=False)
class WhyResult(Result):
    """The probe's result, with further tables that are written beside it, and the pages.

    Attributes:
        tables: `why_modules`, `why_restore`, `why_explanations`, `why_keep`; `why_rewrite` of cells written again.
        pages: cell → its page of text.
    """

    tables: list[Result] = field(kw_only=True)
    pages: dict[str, str] = field(kw_only=True)

    @property
    def beside(self) -> Sequence[Result]:
        """The tables."""
        return self.tables

    def named(self, name: str) -> pd.DataFrame:
        """One of the tables."""
        return next(result.table for result in self.tables if result.probe == name)


@dataclass(frozen=True)
class Rewriting:
    """How cells are written again.

    Attributes:
        out: where they go.
        calibration: texts, for AWQ and GPTQ.
        sets: random lists.
    """

    out: Path
    calibration: Sequence[str] = ()
    sets: int = SETS


def measure(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    keep: int | None = None,
    share: float = SHARE,
    fused: bool = False,
    prompts: int = PROMPTS,
    draws: int = DRAWS,
    seed: int = 0,
    rewriting: Rewriting | None = None,
    openings: Source = "baseline",
    beside: Path | None = None,
    template: AnyTemplate = "auto",
    force: bool = False,
    batch_size: int | None = None,
) -> WhyResult:
    """Explain each cell: the margin's shift, the linears to blame, what restoring them gives, what to keep.

    Margins, restoring and rewritten cells are measured on `prompts` evenly spaced prompts of each side; the attribution
    comes from the other harmful ones, where there are enough, so that linears are not tested on what they were blamed
    by. The length of the list is chosen on the prompts that are measured, unless `keep` gives it.

    Table: one row per cell, with columns
        cell, n_prompts; margin_baseline, margin_cell: means over harmful prompts, nats;
        shift, harmless_shift (each with _low, _high): cell − baseline, with paired 95 % t intervals;
        to_answer, to_refusal: harmful prompts whose margin changed its sign;
        attribution, gap, complete: the sum of all shares, what it misses, and whether that is within its bounds;
        n_keep, supported: linears to keep; whether they (without what completes groups) give back enough of the
            shift and more than random ones;
        bits_per_weight, kept_bits_per_weight: of the cell's linears, and with these in float16;
        reason.

    `why_modules`: the rows "total", "module" and "other" of `probes.attribution`'s table. `why_restore`: rows of
    `probes.causal`'s `causal_restore` for linears. `why_keep`: one row per kept linear: cell, place, linear,
    chosen (False where it only completes a group). The lists as GPTQModel, llm-compressor and llama.cpp take them are
    in the settings, under `forms`. `why_explanations`: one row per cell and explanation that competes: explanation,
    evidence (what `value`, with _low and _high, is), null, verdict ("fits", "does not", "not measured"), why,
    falsified_by. `why_rewrite`: one row per cell and variant, see
    `probes.why.rewriting.measure_variants`.

    Args:
        baseline: the unquantized model.
        cells: quantized copies by name; a lazy mapping is opened one cell at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        keep: how many linears to keep; default the shortest list that gives back enough.
        share: of the shift that is enough; more of it where refusals themselves are to come back.
        fused: keep also what completes the groups of linears that runtimes such as vLLM fuse: q, k, v; gate, up.
        prompts: of each side, to measure on.
        draws: random lists beside every length.
        seed: of these.
        rewriting: write the cells again; only cells that `interp.quantize` wrote.
        openings: as in `probes.margin.measure`.
        beside: a folder with results of `probes.margin`, `probes.reversion`, `probes.coverage` and `probes.depth`, for
            the explanations that they test; without them these are not measured.
        template: "auto", "none" (raw text), a Jinja file, or a `ChatTemplate` with a system prompt, used for all cells.
        force: measure cells that are no quantizations of this baseline.
        batch_size: prompts per pass.

    Raises:
        InputError: as `probes.entropy.probe.measure`; a cell that cannot be written again.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> why.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
    """
    require_in_memory(baseline, "probes.why")
    comparison = compare(baseline, cells, harmful, harmless, template=template, force=force)
    sample = Sample.of(comparison.texts, harmful, prompts)
    refusal_openings = common_openings(comparison, openings)
    explained: dict[str, Explanation] = {}
    variants: dict[str, list[dict[str, Any]]] = {}
    for name in cells:
        try:
            with comparison.pieces_of(
                name, openings=refusal_openings.describe(), prompts=prompts, batch_size=batch_size
            ):
                cell = comparison.cell(name)
                explained[name] = explain(
                    name, baseline, cell, sample, refusal_openings,
                    keep=keep, share=share, fused=fused, draws=draws, seed=seed, batch_size=batch_size,
                    beside=_beside(beside, comparison, name),
                )  # fmt: skip
                if rewriting is not None and not explained[name].keep.kept:
                    comparison.warnings.append(f"{name}: not written again, since {explained[name].keep.choice.why}")
                elif rewriting is not None:
                    original, copy = _checkpoints(baseline, cell)
                    linears, parts = explained[name].keep.kept, Parts.of(baseline)
                    written = rewrite(
                        original, copy, linears, parts, rewriting.out, rewriting.calibration, rewriting.sets, seed
                    )
                    variants[name] = measure_variants(written, baseline, sample, refusal_openings, batch_size)
        except Unmeasurable as error:
            comparison.undefined[name] = str(error)
    comparison.warnings += [
        f"{name}: {warning}" for name, about in explained.items() for warning in about.blame.warnings
    ]
    settings: dict[str, Any] = {
        "openings": refusal_openings.describe(),
        "prompts": prompts,
        "held_out": sample.held_out,
        "share": share,
        "fused": fused,
        "draws": draws,
        "seed": seed,
        "choice": {name: about.keep.choice.why for name, about in explained.items()},
        "forms": {name: dict(about.keep.forms) for name, about in explained.items()},
        "outcome": BROADER,
    }
    result = comparison.result("why", [_row(about) for about in explained.values()], **settings)
    result.table = result.table.reindex(columns=list(COLUMNS))
    by_name = {
        "why_modules": [about.blame.table() for about in explained.values()],
        "why_restore": [about.restoration.curve.assign(cell=name) for name, about in explained.items()],
        "why_explanations": [
            pd.DataFrame([rival.row() for rival in about.rivals]).assign(cell=name) for name, about in explained.items()
        ],
        "why_keep": [_kept(about) for about in explained.values()],
        "why_rewrite": [pd.DataFrame(rows).assign(cell=name) for name, rows in variants.items()],
    }
    written_tables = [
        Result(name, pd.concat(frames, ignore_index=True), result.settings, result.warnings)
        for name, frames in by_name.items()
        if frames
    ]
    pages = {name: page(about, variants.get(name, ())) for name, about in explained.items()}
    return WhyResult(**vars(result), tables=written_tables, pages=pages)


def _beside(folder: Path | None, comparison: Comparison, name: str) -> Mapping[str, pd.DataFrame]:
    described = [comparison.settings[BASELINE], comparison.settings["cells"][name]]
    hashes = [about["sha256"] for about in described if about is not None]
    return measured_beside(folder, *hashes) if len(hashes) == 2 else {}


def _checkpoints(baseline: HookedModel, cell: HookedModel) -> tuple[Checkpoint, Checkpoint]:
    if baseline.checkpoint is None or cell.checkpoint is None:
        raise InputError("A model made in memory cannot be written again", "checkpoints on disk")
    return baseline.checkpoint, cell.checkpoint


def _row(about: Explanation) -> dict[str, Any]:
    return {
        "cell": about.cell,
        "n_prompts": about.margin.n,
        "margin_baseline": about.margin.before.value,
        "margin_cell": about.margin.after.value,
        **intervals.interval_columns("shift", about.margin.shift),
        **intervals.interval_columns("harmless_shift", about.margin.harmless_shift),
        "to_answer": about.margin.to_answer,
        "to_refusal": about.margin.to_refusal,
        "attribution": float(about.blame.total["attribution"]),
        "gap": float(about.blame.total["gap"]),
        "complete": about.blame.complete,
        "n_keep": len(about.keep.kept),
        "supported": about.keep.choice.supported,
        "bits_per_weight": about.keep.bits,
        "kept_bits_per_weight": about.keep.kept_bits,
        "reason": "",
    }


def _kept(about: Explanation) -> pd.DataFrame:
    in_choice = [linear in about.keep.choice.linears for linear in about.keep.kept]
    places = range(1, len(about.keep.kept) + 1)
    return pd.DataFrame({"cell": about.cell, "place": places, "linear": about.keep.kept, "chosen": in_choice})
