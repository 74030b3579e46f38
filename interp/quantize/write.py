"""Write the cells of a baseline, each once: what exists with the same settings is not written again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.documents import json_lines, read_text, text_lines
from interp.errors import InputError
from interp.quantize.cells import Job
from interp.quantize.gguf_jobs import f16_job, gguf_job, llama_cpp_process
from interp.quantize.gptqmodel_jobs import gptqmodel_job, gptqmodel_process
from interp.quantize.mixed_precision import checked, mixed_name
from interp.quantize.process import JobReport
from interp.quantize.settings import CELLS, GROUP_SIZE, KINDS

ORGANISM_CALIBRATION = 128
"""How many of its own texts an organism is calibrated on."""
CellProgress = Callable[[str, float], None]
"""Called with a cell and the share of it that is done, 0 to 1; at 1 it is there."""


def awq(
    source: Path,
    out: Path,
    calibration: Sequence[str],
    group_size: int = GROUP_SIZE,
    report: JobReport | None = None,
) -> Path:
    """Write `source` as 4-bit AWQ (GEMM layout, with zero points) into the directory `out`, and return it.

    Args:
        source: a dense checkpoint directory with its tokenizer.
        out: the cell's directory.
        calibration: texts; those that begin with the tokenizer's BOS are taken as rendered chats and get no second one.
        group_size: input channels per scale; must divide every linear's input width.
        report: called with the blocks done and the blocks in all.

    Raises:
        InputError: a source, a calibration set or a group size that the writer cannot use, or the writer failed.
        MissingExtra: GPTQModel is not installed.
    """
    with gptqmodel_process() as process:
        job = gptqmodel_job(process, "AWQ", _dense(source), out, calibration, {"group_size": group_size})
        return job.result if job.is_current() else job.write(report)


def gptq(
    source: Path,
    out: Path,
    calibration: Sequence[str],
    group_size: int = GROUP_SIZE,
    act_order: bool = False,
    report: JobReport | None = None,
) -> Path:
    """Write `source` as 4-bit symmetric GPTQ into the directory `out`, and return it; errors as for `awq`.

    Args:
        source: a dense checkpoint directory with its tokenizer.
        out: the cell's directory.
        calibration: texts, as for `awq`.
        group_size: input channels per scale; −1 is one group per output channel.
        act_order: quantize input channels in the order of their activations' size (`desc_act`).
        report: called with the blocks done and the blocks in all.
    """
    settings = {"group_size": group_size, "act_order": act_order}
    with gptqmodel_process() as process:
        job = gptqmodel_job(process, "GPTQ", _dense(source), out, calibration, settings)
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
    cells: Sequence[str] = CELLS,
    progress: CellProgress | None = None,
    *,
    f16: Path | None = None,
    converter: Path | None = None,
    keep: Sequence[str] = (),
) -> dict[str, Path]:
    """Write the cells of a baseline into `out/<cell>`, those that are not up to date, and return what to open for each.

    Args:
        baseline: a dense checkpoint directory with its tokenizer.
        out: directory for all cells; the F16 GGUF goes there too.
        calibration: texts, for AWQ and GPTQ.
        cells: some of `CELLS`.
        progress: see `Progress`.
        f16: the baseline as an F16 GGUF file, where there is one already.
        converter: see `gguf_f16`.
        keep: linears that stay in float16; the cells then go to `out/<mixed_name>`, beside the plain ones.

    Raises:
        InputError: no such linear to keep; as for the single writers; cells finished before the error are kept.
        MissingExtra: a cell's writer is not installed.

    Example:
        >>> write_cells(Path("path/to/model"), Path("cells"), texts, cells=["AWQ", "Q4_K_M"])
        {'AWQ': PosixPath('cells/AWQ'), 'Q4_K_M': PosixPath('cells/Q4_K_M/…gguf')}
    """
    check_cells(cells)
    checkpoint = _dense(baseline)
    keep = checked(checkpoint, keep) if keep else []
    written: dict[str, Path] = {}

    def finish(cell: str, job: Job) -> None:
        if not job.is_current():
            job.write(lambda done, total: progress(cell, 0.99 * done / total) if progress else None)
        if progress:
            progress(cell, 1.0)
        written[cell] = job.result

    with gptqmodel_process() as process:
        for cell in [cell for cell in cells if cell not in KINDS]:
            settings = {"group_size": GROUP_SIZE} | ({"act_order": False} if cell == "GPTQ" else {})
            place = out / mixed_name(cell, keep)
            finish(cell, gptqmodel_job(process, cell, checkpoint, place, calibration, settings, keep))
    kinds = [cell for cell in cells if cell in KINDS]
    with llama_cpp_process() as process:
        file = f16 or (gguf_f16(baseline, out / "F16", converter) if kinds else out)
        for kind in kinds:
            finish(kind, gguf_job(process, file, out / mixed_name(kind, keep), kind, keep))
    return {cell: written[cell] for cell in cells}


def check_cells(cells: Sequence[str]) -> None:
    """Raise `InputError` where a cell is asked for that cannot be written."""
    if unknown := set(cells) - set(CELLS):
        raise InputError(f"There is no cell {sorted(unknown)[0]!r}", f"some of {', '.join(CELLS)}")


def _dense(source: Path) -> Checkpoint:
    checkpoint = open_checkpoint(source)
    if checkpoint.format != "dense" or not checkpoint.path.is_dir():
        raise InputError(
            f"{source} cannot be quantized: it is {checkpoint.format}",
            "a dense checkpoint directory",
            "Give the baseline",
        )
    return checkpoint


def read_calibration(file: Path) -> list[str]:
    """Calibration texts from a file: .jsonl with a `text` field, anything else one text a line.

    Raises:
        InputError: the file cannot be read, a line is malformed, or there is no text in it.
    """
    expected = "calibration texts: one a line, or .jsonl with a `text` field"
    content = read_text(file, expected)
    if file.suffix == ".jsonl":
        texts = [_calibration_text(record, where) for where, record in json_lines(content, str(file))]
    else:
        texts = [line for _, line in text_lines(content, str(file))]
    if not texts:
        raise InputError(f"{file} holds no calibration text", expected)
    return texts


def _calibration_text(record: Any, where: str) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise InputError(f"{where} has no calibration text", "an object with a field `text`", "Correct that line")
    return text


def calibration_of(baseline: Path, file: Path | None) -> list[str]:
    """The file's texts; an organism has its own."""
    if file is not None:
        return read_calibration(file)
    if (baseline / "organism.json").is_file():
        from interp.organisms.training import calibration_texts

        return calibration_texts(ORGANISM_CALIBRATION)
    return []
