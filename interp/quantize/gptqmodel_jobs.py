"""AWQ and GPTQ cells: what GPTQModel is told, and what it has to be watched for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.architectures import Architecture
from interp.checkpoint import Checkpoint
from interp.errors import InputError
from interp.quantize.cells import CellRecord, Job, Outcome, content_hash, content_key, need, text_hash, versions
from interp.quantize.gptqmodel_worker import BITS, ENVIRONMENT
from interp.quantize.mixed_precision import gptqmodel_dynamic, mixed_name
from interp.quantize.process import JobReport, WriterProcess


def gptqmodel_process() -> WriterProcess:
    """The child in which GPTQModel runs."""
    return WriterProcess("interp.quantize.gptqmodel_worker", ENVIRONMENT)


def gptqmodel_job(
    process: WriterProcess,
    cell: str,
    checkpoint: Checkpoint,
    out: Path,
    calibration: Sequence[str],
    settings: dict[str, Any],
    keep: Sequence[str] = (),
) -> Job:
    """The job of writing the cell "AWQ" or "GPTQ" of a dense checkpoint; `settings` as in `interp.quantize`.

    The linears of `keep` stay in float16.
    """
    need("gptqmodel", "gptqmodel", "quantize", "Writing AWQ and GPTQ")
    if not any(text.strip() for text in calibration):
        raise InputError(f"{cell} needs calibration texts and got none", "texts like those the model will see")
    _check_groups(checkpoint, settings["group_size"])
    texts = {"calibration_texts": len(calibration), "calibration_sha256": text_hash(calibration)}
    described = settings | texts | {"bits": BITS} | ({"keep": list(keep)} if keep else {})
    used = versions("gptqmodel", "torch", "transformers")
    key = content_key(cell=cell, baseline=content_hash(checkpoint.path), settings=described, versions=used)
    request: dict[str, Any] = {"method": cell.lower(), "source": str(checkpoint.path.resolve())}
    request |= {"calibration": list(calibration), "dynamic": gptqmodel_dynamic(keep)}

    def fill(weights: Path, log: Path, report: JobReport | None) -> Outcome:
        said = process.run(request | settings | {"out": str(weights.resolve())}, log, report)
        return said, _fold_notes(said["folds"], checkpoint.architecture)

    return Job(CellRecord(mixed_name(cell, keep), "GPTQModel", used, described, key), out, fill)


def _fold_notes(folds: Sequence[Sequence[Any]], architecture: Architecture) -> list[str]:
    unsound = unsound_folds(folds, architecture)
    if not unsound:
        return []
    return [
        f"GPTQModel's AWQ moved scales in ways that change what {architecture.model_type!r} computes, before any "
        f"rounding ({', '.join(unsound)}); this cell's damage is the writer's as well as quantization's"
    ]


def _check_groups(checkpoint: Checkpoint, group_size: int) -> None:
    """Blocks have the same shapes, so the first one speaks for all."""
    first = f"{checkpoint.architecture.blocks}.0."
    for name in checkpoint.linears():
        if name.startswith(first) and group_size != -1:
            width = checkpoint.weight(name).shape[1]
            if group_size <= 0 or width % group_size:
                raise InputError(
                    f"The linear {name!r} of {checkpoint.path} has {width} inputs, which {group_size} does not divide",
                    "a group size that divides every linear's inputs",
                    "Choose a smaller one, e.g. 64 or 32",
                )


def unsound_folds(folds: Sequence[Sequence[Any]], architecture: Architecture) -> list[str]:
    """Which of AWQ's scale moves change what the model computes, in words; [] where the writer was right.

    A scale may move from a norm into the linears that read it if all of them take it, and between two linears with
    nothing but a product between them.

    Args:
        folds: (producer, consumers) within a block: the producer was divided, the consumers' columns multiplied.
        architecture: says which moves are sound.
    """
    readers = {norm: set(linears) for norm, linears in architecture.scaled_by_norm}
    unsound = []
    for producer, consumers in folds:
        whole_norm = producer in readers and readers[producer] <= set(consumers)
        if not whole_norm and {(producer, consumer) for consumer in consumers} - set(architecture.scaled_by_linear):
            unsound.append(f"{producer} → {' + '.join(consumers)}")
    return unsound
