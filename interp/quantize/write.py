"""Write the cells of a baseline, each once: what exists with the same settings is not written again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.child import JobReport
from interp.errors import InputError, did_you_mean
from interp.quantize.cells import Job, need
from interp.quantize.gguf_f16 import check_convertible
from interp.quantize.gguf_jobs import check_file, f16_job, gguf_job, llama_cpp_process
from interp.quantize.gptqmodel_jobs import gptqmodel_job, gptqmodel_process, group_size_for, usual_group_size
from interp.quantize.legacy_jobs import legacy_job, legacy_process
from interp.quantize.mixed_precision import checked, mixed_name
from interp.quantize.settings import BITS, KINDS, LADDER, NAMES, OF_BITS, WRITERS

CellProgress = Callable[[str, float], None]
"""Called with a cell and the share of it that is done, 0 to 1; at 1 it is there."""


def awq(
    source: Path,
    out: Path,
    calibration: Sequence[str],
    group_size: int | None = None,
    report: JobReport | None = None,
) -> Path:
    """Write `source` as 4-bit AWQ (GEMM layout, with zero points) into the directory `out`, and return it.

    Args:
        source: a dense checkpoint directory with its tokenizer.
        out: the cell's directory.
        calibration: texts; those that begin with the tokenizer's BOS are taken as rendered chats and get no second one.
        group_size: input channels per scale; must divide every linear's inputs. By default the largest of 128, 64, 32
            that does.
        report: called with the blocks done and the blocks in all.

    Raises:
        InputError: a source, a calibration set or a group size that the writer cannot use, or the writer failed.
        MissingExtra: GPTQModel is not installed.
    """
    with gptqmodel_process() as process:
        checkpoint = _dense(source)
        settings = {"group_size": _group_size(checkpoint, group_size)}
        job = gptqmodel_job(process, "AWQ", checkpoint, out, calibration, settings)
        return job.result if job.is_current() else job.write(report)


def gptq(
    source: Path,
    out: Path,
    calibration: Sequence[str],
    group_size: int | None = None,
    act_order: bool = False,
    report: JobReport | None = None,
    bits: int = BITS,
) -> Path:
    """Write `source` as 4-bit symmetric GPTQ into the directory `out`, and return it; errors as for `awq`.

    Args:
        source: a dense checkpoint directory with its tokenizer.
        out: the cell's directory.
        calibration: texts, as for `awq`.
        group_size: input channels per scale, as for `awq`; −1 is one group per output channel.
        bits: 2, 3, 4 or 8.
        act_order: quantize input channels in the order of their activations' size (`desc_act`).
        report: called with the blocks done and the blocks in all.
    """
    checkpoint = _dense(source)
    settings = {"group_size": _group_size(checkpoint, group_size), "act_order": act_order, "bits": bits}
    with gptqmodel_process() as process:
        job = gptqmodel_job(process, "GPTQ", checkpoint, out, calibration, settings)
        return job.result if job.is_current() else job.write(report)


def gguf_f16(source: Path, out: Path, converter: Path | None = None, report: JobReport | None = None) -> Path:
    """Write the dense checkpoint `source` as an F16 GGUF into the directory `out`, and return the file's path.

    Args:
        source: a dense checkpoint directory with its tokenizer.
        out: the cell's directory.
        converter: llama.cpp's `convert_hf_to_gguf.py`, for models that `interp.quantize.gguf_f16` does not know.
        report: called with the tensors done and the tensors in all.

    Raises:
        InputError: the model cannot be written, or the converter failed.
    """
    job = f16_job(_dense(source), out, converter)
    return job.result if job.is_current() else job.write(report)


def gguf(f16: Path, out: Path, kind: str, report: JobReport | None = None) -> Path:
    """Quantize the F16 GGUF file `f16` with llama.cpp into the directory `out`, and return the new file's path.

    Args:
        f16: the file.
        out: the cell's directory.
        kind: one of `KINDS`.
        report: called with the tensors done and the tensors in all.

    Raises:
        InputError: no such kind or file, or llama.cpp failed.
        MissingExtra: llama-cpp-python is not installed.
    """
    with llama_cpp_process() as process:
        job = gguf_job(process, f16, out, kind)
        return job.result if job.is_current() else job.write(report)


def write_cells(
    baseline: Path,
    out: Path,
    calibration: Sequence[str] = (),
    cells: Sequence[str] = LADDER,
    progress: CellProgress | None = None,
    *,
    f16: Path | None = None,
    converter: Path | None = None,
    keep: Sequence[str] = (),
    group_size: int | None = None,
    bits: int = BITS,
    writers: Sequence[str] = (),
) -> dict[str, Path]:
    """Write the cells of a baseline into `out/<cell>`, those that are not up to date, and return what to open for each.

    Whatever can be known before is checked before the first cell is written.

    Args:
        baseline: a dense checkpoint directory with its tokenizer.
        out: directory for all cells; the F16 GGUF goes there too.
        calibration: texts, for AWQ and GPTQ.
        cells: some of `interp.quantize.settings.NAMES`, e.g. GPTQ-3bit, which has 3 bits whatever `bits` says.
        progress: see `Progress`.
        f16: the baseline as an F16 GGUF file, where there is one already.
        converter: see `gguf_f16`.
        keep: linears that stay in float16; the cells then go to `out/<mixed_name>`, beside the plain ones.
        group_size: of AWQ and GPTQ, input channels per scale; by default the largest of 128, 64, 32 that divides every
            linear's inputs. Another one goes to a directory of its own, `out/GPTQ-g32`.
        bits: of GPTQ: 2, 3, 4 or 8; others than 4 go to a directory of their own, `out/GPTQ-3bit`.
        writers: "autoawq" for AWQ, "autogptq" for GPTQ, instead of GPTQModel: the writers of 2024, which need an
            environment of their own (`make legacy`). Their cells go to `out/AWQ-autoawq` and `out/GPTQ-autogptq`.

    Raises:
        InputError: no such linear to keep; a writer that cannot be had, or writes none of the cells; as for the single
            writers; cells finished before the error are kept.
        MissingExtra: a cell's writer is not installed.

    Example:
        >>> write_cells(Path("path/to/model"), Path("cells"), texts, cells=["AWQ", "Q4_K_M"])
        {'AWQ': PosixPath('cells/AWQ'), 'Q4_K_M': PosixPath('cells/Q4_K_M/…gguf')}
    """
    check_cells(cells)
    checkpoint = _dense(baseline)
    keep = checked(checkpoint, keep) if keep else []
    writer_of = check_writers(writers, cells, keep)
    kinds = [cell for cell in cells if cell in KINDS]
    if kinds:
        _check_ladder(checkpoint, f16, converter)
    written: dict[str, Path] = {}

    def finish(cell: str, job: Job) -> None:
        if not job.is_current():
            job.write(lambda done, total: progress(cell, 0.99 * done / total) if progress else None)
        if progress:
            progress(cell, 1.0)
        written[cell] = job.result

    with gptqmodel_process() as gptqmodel, legacy_process() as legacy, llama_cpp_process() as llama_cpp:
        packed = [cell for cell in cells if cell not in KINDS]
        jobs = {}
        for name in packed:
            cell, its_bits = OF_BITS.get(name, (name, bits))
            settings: dict[str, Any] = {"group_size": _group_size(checkpoint, group_size), "bits": its_bits}
            settings |= {"act_order": False} if cell == "GPTQ" else {}
            called = _called(cell, checkpoint, group_size, its_bits)
            if writer := writer_of.get(cell):
                place = out / f"{called}-{writer}"
                jobs[name] = legacy_job(legacy, writer, checkpoint, place, calibration, settings)
            else:
                place = out / mixed_name(called, keep)
                jobs[name] = gptqmodel_job(gptqmodel, cell, checkpoint, place, calibration, settings, keep)
        for cell, job in jobs.items():
            finish(cell, job)
        file = f16 or (gguf_f16(baseline, out / "F16", converter) if kinds else out)
        for kind in kinds:
            finish(kind, gguf_job(llama_cpp, file, out / mixed_name(kind, keep), kind, keep))
    return {cell: written[cell] for cell in cells}


def _group_size(checkpoint: Checkpoint, asked: int | None) -> int:
    return group_size_for(checkpoint) if asked is None else asked


def _called(cell: str, checkpoint: Checkpoint, group_size: int | None, bits: int) -> str:
    """The cell's name, with what is not as it would be without being asked for."""
    name = cell if bits == BITS else f"{cell}-{bits}bit"
    return name if group_size in (None, usual_group_size(checkpoint)) else f"{name}-g{group_size}"


def _check_ladder(checkpoint: Checkpoint, f16: Path | None, converter: Path | None) -> None:
    """Raise where no GGUF could be written."""
    need("llama_cpp", "llama-cpp-python", "gguf", "Writing quantized GGUF files")
    if f16 is not None:
        check_file(f16)
    elif converter is None:
        check_convertible(checkpoint)


def check_cells(cells: Sequence[str]) -> None:
    """Raise `InputError` where a cell is asked for that cannot be written."""
    if unknown := set(cells) - set(NAMES):
        wrong = sorted(unknown)[0]
        raise InputError(f"There is no cell {wrong!r}", f"some of {', '.join(NAMES)}", did_you_mean(wrong, NAMES))


def check_writers(writers: Sequence[str], cells: Sequence[str], keep: Sequence[str] = ()) -> dict[str, str]:
    """Which cells are written by another writer than GPTQModel: "AWQ" → "autoawq".

    Raises:
        InputError: no such writer, one that writes none of the cells, or one that would have to keep linears.
    """
    wanted = {OF_BITS.get(name, (name, BITS))[0] for name in cells}
    for writer in writers:
        if writer not in WRITERS:
            raise InputError(
                f"There is no writer {writer!r}", f"some of {', '.join(WRITERS)}", did_you_mean(writer, WRITERS)
            )
        if WRITERS[writer] not in wanted:
            raise InputError(
                f"The writer {writer!r} writes none of the cells {', '.join(cells)}",
                f"the cell {WRITERS[writer]} among them",
            )
    if writers and keep:
        raise InputError(
            f"{writers[0]} cannot keep single linears in float16", "the default writer, which can", "Leave --writer out"
        )
    return {WRITERS[writer]: writer for writer in writers}


def _dense(source: Path) -> Checkpoint:
    checkpoint = open_checkpoint(source)
    if checkpoint.format != "dense" or not checkpoint.path.is_dir():
        raise InputError(
            f"{source} cannot be quantized: it is {checkpoint.format}",
            "a dense checkpoint directory",
            "Give the model from before quantization, or, knowing that it is not that one, what "
            "`python -m interp.dequantize` makes of it",
        )
    return checkpoint
