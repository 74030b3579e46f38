"""AWQ and GPTQ cells: what GPTQModel is told, and what it has to be watched for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.architectures import Architecture
from interp.checkpoint import Checkpoint
from interp.child import Child, JobReport
from interp.errors import InputError
from interp.quantize.calibration import BuiltinChats
from interp.quantize.cells import CellRecord, Job, Outcome, content_hash, content_key, need, text_hash, versions
from interp.quantize.gptqmodel_worker import ENVIRONMENT
from interp.quantize.mixed_precision import gptqmodel_dynamic, mixed_name
from interp.quantize.settings import BITS, GROUP_SIZES, WRITABLE_BITS


def gptqmodel_process() -> Child:
    """The child in which GPTQModel runs."""
    return Child("interp.quantize.gptqmodel_worker", ENVIRONMENT)


def gptqmodel_job(
    process: Child,
    cell: str,
    checkpoint: Checkpoint,
    out: Path,
    calibration: Sequence[str],
    settings: dict[str, Any],
    keep: Sequence[str] = (),
) -> Job:
    """The job of writing the cell "AWQ" or "GPTQ" of a dense checkpoint; the linears of `keep` stay in float16.

    Args:
        process: where GPTQModel runs.
        cell: "AWQ" or "GPTQ".
        checkpoint: the baseline.
        out: the cell's directory.
        calibration: texts.
        settings: `group_size`, `act_order` (of GPTQ) and, if not 4, `bits`.
        keep: linears.

    Raises:
        InputError: no texts; bits or a group size that cannot be written.
        MissingExtra: GPTQModel is not installed.
    """
    need("gptqmodel", "gptqmodel", "quantize", "Writing AWQ and GPTQ")
    settings = {"bits": BITS} | settings
    check_settings(cell, checkpoint, calibration, settings)
    described = settings | described_texts(calibration) | ({"keep": list(keep)} if keep else {})
    used = versions("gptqmodel", "torch", "transformers")
    key = content_key(cell=cell, baseline=content_hash(checkpoint.path), settings=described, versions=used)
    request: dict[str, Any] = {"method": cell.lower(), "source": str(checkpoint.path.resolve())}
    request |= {"calibration": list(calibration), "dynamic": gptqmodel_dynamic(keep)}

    def fill(weights: Path, log: Path, report: JobReport | None) -> Outcome:
        reply = process.run(request | settings | {"out": str(weights.resolve())}, log, report)
        return reply, fold_notes("GPTQModel", reply["folds"], checkpoint.architecture)

    return Job(CellRecord(mixed_name(cell, keep), "GPTQModel", used, described, key), out, fill)


def described_texts(calibration: Sequence[str]) -> dict[str, Any]:
    """What a cell's record says of the texts it was calibrated on."""
    texts = {"calibration_texts": len(calibration), "calibration_sha256": text_hash(calibration)}
    return texts | ({"calibration": BuiltinChats.NAME} if isinstance(calibration, BuiltinChats) else {})


def fold_notes(writer: str, folds: Sequence[Sequence[Any]], architecture: Architecture) -> list[str]:
    """What a reader of results must know of the scales that AWQ moved; [] where the writer was right."""
    unsound = unsound_folds(folds, architecture)
    if not unsound:
        return []
    return [
        f"{writer}'s AWQ moved scales in ways that change what {architecture.model_type!r} computes, before any "
        f"rounding ({', '.join(unsound)}); this cell's damage is the writer's as well as quantization's"
    ]


def check_settings(cell: str, checkpoint: Checkpoint, calibration: Sequence[str], settings: dict[str, Any]) -> None:
    """Raise `InputError` where texts, bits or group size are none that "AWQ" or "GPTQ" can be written with."""
    if not any(text.strip() for text in calibration):
        raise InputError(f"{cell} needs calibration texts and got none", "texts like those the model will see")
    _check_bits(cell, settings["bits"])
    _check_groups(checkpoint, settings["group_size"])


def _check_bits(cell: str, bits: int) -> None:
    if bits not in WRITABLE_BITS[cell]:
        others = [f"{other} of {bits}" for other, possible in WRITABLE_BITS.items() if bits in possible]
        raise InputError(
            f"{cell} of {bits} bits cannot be written",
            f"{' or '.join(map(str, WRITABLE_BITS[cell]))} bits",
            f"Ask for {' or '.join(others)} bits alone, --cells {others[0].split()[0]}" if others else "",
        )


def group_size_for(checkpoint: Checkpoint) -> int:
    """The largest usual group size that divides every linear's inputs.

    Raises:
        InputError: none does.
    """
    size = usual_group_size(checkpoint)
    if size is None:
        widths = _widths(checkpoint)
        name, width = next((name, width) for name, width in widths.items() if width % GROUP_SIZES[-1])
        raise InputError(
            f"The linear {name!r} of {checkpoint.path} has {width} inputs, which none of "
            f"{', '.join(map(str, GROUP_SIZES))} divides",
            "a group size that divides every linear's inputs",
            "Choose one with --group-size; −1 is one group a row",
        )
    return size


def usual_group_size(checkpoint: Checkpoint) -> int | None:
    """As `group_size_for`; None where no usual size divides."""
    widths = _widths(checkpoint).values()
    return next((size for size in GROUP_SIZES if not any(width % size for width in widths)), None)


def _widths(checkpoint: Checkpoint) -> dict[str, int]:
    """Inputs of every linear: blocks may differ."""
    return {name: checkpoint.weight_shape(name)[1] for name in checkpoint.linears()}


def _check_groups(checkpoint: Checkpoint, group_size: int) -> None:
    for name, width in _widths(checkpoint).items() if group_size != -1 else ():
        if group_size <= 0 or width % group_size:
            raise InputError(
                f"The linear {name!r} of {checkpoint.path} has {width} inputs, which {group_size} does not divide",
                "a group size that divides every linear's inputs",
                "Choose a smaller one, e.g. 64 or 32, or leave it out",
            )


def unsound_folds(folds: Sequence[Sequence[Any]], architecture: Architecture) -> list[str]:
    """Which of AWQ's scale moves change what the model computes, in words; [] where the writer was right.

    A scale may move from a norm into the linears that read it if all of them take it, and between two linears with
    nothing but a product between them.

    Args:
        folds: (producer, consumers) within a block: the producer was divided, the consumers' columns multiplied.
        architecture: says which moves are sound.
    """
    readers = [(norm, set(linears)) for norm, linears in architecture.scaled_by_norm]
    unsound = []
    for producer, consumers in folds:
        whole_norm = any(norm == producer and linears <= set(consumers) for norm, linears in readers)
        if not whole_norm and {(producer, consumer) for consumer in consumers} - set(architecture.scaled_by_linear):
            unsound.append(f"{producer} → {' + '.join(consumers)}")
    return unsound
