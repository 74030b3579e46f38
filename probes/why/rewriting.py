"""A cell written again with some linears at higher precision, beside random linears of the same number and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.model import HookedModel
from interp.progress import track
from interp.quantize.cells import CellRecord, read_record, text_hash
from interp.quantize.settings import CELLS
from interp.quantize.write import write_cells
from probes.attribution.parts import Part, Parts
from probes.attribution.settings import PartKind
from probes.causal.exchange import refused as refused_by
from probes.causal.experiments import Sample
from probes.causal.rankings import matched_draws
from probes.causal.recovery import recoveries
from probes.harness import pieces
from probes.harness.comparison import Cells
from probes.harness.names import BASELINE
from probes.margin.openings import Openings
from probes.margin.refusal_margin import MarginRuns
from probes.stats import intervals
from probes.stats.intervals import rate_interval
from probes.stats.random_draws import draw_p
from probes.why.settings import SETS

PLAIN, KEPT = "plain", "kept"
Variant = tuple[str, Sequence[str], Path]
"""A name, the linears kept, and what to open."""


def rewrite(
    baseline: Checkpoint,
    cell: Checkpoint,
    keep: Sequence[str],
    parts: Parts,
    out: Path,
    calibration: Sequence[str] = (),
    sets: int = SETS,
    seed: int = 0,
) -> list[Variant]:
    """Write the cell again with `keep` in float16, and with each of some random lists instead.

    Args:
        baseline: a dense checkpoint directory.
        cell: one that `interp.quantize` wrote from it.
        keep: the linears.
        parts: of the model.
        out: where the new cells go; those that are there already are not written again.
        calibration: texts, for AWQ and GPTQ.
        sets: random lists: as many linears of each size.
        seed: of these.

    Raises:
        InputError: a cell of another writer, with other settings than `interp.quantize.write_cells` gives, or with
            other calibration texts: what they change would be taken for what keeping linears does.
    """
    record = _record(cell, calibration)
    kind, settings = record.cell, _settings(record)
    linear_parts = [Part(PartKind.MODULE, parts.layer_of(name), module=name) for name in keep]
    drawn = [[part.module for part in parts_] for parts_ in matched_draws(linear_parts, parts, sets, seed)]
    lists = {KEPT: list(keep)} | {f"random {number + 1}": names for number, names in enumerate(drawn)}
    beside = cell.path.parent.parent / "F16" / "F16.gguf"
    f16 = beside if cell.format == "gguf" and beside.is_file() else None
    variants: list[Variant] = [(PLAIN, [], cell.path)]
    for name, linears in track(list(lists.items()), "writing cells"):
        written = write_cells(baseline.path, out, calibration, [kind], f16=f16, keep=linears, **settings)
        variants.append((name, linears, written[kind]))
    return variants


def _settings(record: CellRecord) -> dict[str, Any]:
    """What `write_cells` was told of it."""
    return {name: record.settings[name] for name in ("group_size", "bits") if name in record.settings}


def _record(cell: Checkpoint, calibration: Sequence[str]) -> CellRecord:
    """The cell's own record.

    Raises:
        InputError: see `rewrite`.
    """
    record = read_record(cell.path)
    if record is None or record.cell not in CELLS:
        raise InputError(
            f"{cell.path} cannot be written again: it is not a plain cell that interp.quantize wrote",
            f"one of {', '.join(CELLS)}, with its quantscope.json",
            "Quantize it with the list that is printed, in the program that wrote it",
        )
    if record.settings.get("act_order", False) or record.settings.get("keep"):
        raise InputError(f"{cell.path} was written with {dict(record.settings)}", "no act-order, and no linears kept")
    if record.settings.get("calibration_sha256") not in (None, text_hash(calibration)):
        raise InputError(
            f"{cell.path} was written with other calibration texts than the {len(calibration)} given now",
            "the same, so that nothing but the list differs",
            "Give its texts with --calibration, or write the cell anew",
        )
    return record


def measure_variants(
    variants: Sequence[Variant],
    baseline: HookedModel,
    sample: Sample,
    openings: Openings,
    batch_size: int | None = None,
) -> list[dict[str, Any]]:
    """Margins and refusals of every variant and of the baseline, on prompts that no linear was blamed by.

    The length of the list may have been chosen by these (`probes.why.keep_list.choose`); random lists have the same.

    Returns:
        A row a model, the baseline's first, the plain cell's second, with variant, n_kept, kept, bits_per_weight;
        n_prompts (of each side); margin (with _low, _high), gain (over the plain cell), share (of the way to the
        baseline); p (kept: (1 + random lists that come as far) / (1 + lists)); refusal_rate and over_refusal_rate by
        the broader lexicon with Wilson's intervals, refusals lost against and gained over the plain cell; reason.
    """
    runs = MarginRuns.of(baseline, sample.measured["harmful"], openings, batch_size)
    cells = Cells({name: path for name, _, path in variants}, baseline, str(baseline.hf.device))
    margins, refused = {}, {}

    def measured(name: str) -> tuple[Tensor, dict[str, Tensor]]:
        model = baseline if name == BASELINE else cells[name]
        return runs.margins(model), {side: refused_by(model, texts) for side, texts in sample.measured.items()}

    for name in track([BASELINE, *cells], "measuring cells"):
        content = "" if name == BASELINE else cells.checkpoints[name].fingerprint()
        margins[name], refused[name] = pieces.kept(["variant", content], partial(measured, name))
    return list(_rows(variants, margins, refused))


def _rows(
    variants: Sequence[Variant],
    margins: Mapping[str, Float[Tensor, " prompt"]],
    refused: Mapping[str, Mapping[str, Bool[Tensor, " prompt"]]],
) -> Sequence[dict[str, Any]]:
    names = [BASELINE, *(name for name, _, _ in variants)]
    effects = recoveries(torch.stack([margins[name] for name in names]), margins[PLAIN], margins[BASELINE])
    about = {name: (linears, open_checkpoint(path).bits_per_weight()) for name, linears, path in variants}
    rows = []
    for name, effect in zip(names, effects, strict=True):
        linears, bits = about.get(name, ((), float("nan")))
        harmful, plain = refused[name]["harmful"], refused[PLAIN]["harmful"]
        rows.append(
            {
                **{"variant": name, "n_kept": len(linears), "kept": list(linears), "bits_per_weight": bits},
                "n_prompts": len(harmful),
                **intervals.interval_columns("margin", effect.margin),
                **intervals.interval_columns("gain", effect.gain),
                **intervals.interval_columns("share", effect.share),
                **intervals.interval_columns("refusal_rate", rate_interval(harmful)),
                **intervals.interval_columns("over_refusal_rate", rate_interval(refused[name]["harmless"])),
                "refusals_gained": int((harmful & ~plain).sum()),
                "refusals_lost": int((plain & ~harmful).sum()),
                "reason": effect.reason,
            }
        )
    return _with_p(rows, margins)


def _with_p(rows: list[dict[str, Any]], margins: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    direction = np.sign((margins[BASELINE] - margins[PLAIN]).double().mean().item())
    random = np.array([row["gain"] for row in rows if row["variant"].startswith("random")])
    for row in rows:
        row["p"] = draw_p(direction * row["gain"], direction * random) if row["variant"] == KEPT else float("nan")
    return rows
