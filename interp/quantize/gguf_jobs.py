"""GGUF cells: the F16 file, and llama.cpp's quantizations of it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.child import Child, JobReport
from interp.errors import InputError
from interp.files import sha256
from interp.quantize import gguf_f16
from interp.quantize.cells import CellRecord, Job, Outcome, content_hash, content_key, need, versions
from interp.quantize.mixed_precision import KEPT_TYPE, exactly, gguf_tensors, mixed_name
from interp.quantize.settings import KINDS


def llama_cpp_process() -> Child:
    """The child in which llama.cpp quantizes."""
    return Child("interp.quantize.llama_cpp_worker")


def f16_job(checkpoint: Checkpoint, out: Path, converter: Path | None) -> Job:
    """The job of writing a dense checkpoint as an F16 GGUF file."""
    if converter is not None and not converter.is_file():
        raise InputError(f"The converter {converter} does not exist", "llama.cpp's convert_hf_to_gguf.py")
    writer, settings = "interp.quantize.gguf_f16", {"revision": str(gguf_f16.REVISION)}
    if converter is not None:
        writer, settings = "convert_hf_to_gguf.py", {"sha256": sha256(converter)}
    used = versions("gguf")
    key = content_key(baseline=content_hash(checkpoint.path), settings=settings, versions=used)

    def fill(weights: Path, log: Path, report: JobReport | None) -> Outcome:
        if converter is None:
            gguf_f16.write_f16(checkpoint.path, weights, report)
        else:
            _convert(converter, checkpoint.path, weights, log)
        return {"tensor_types": _tensor_types(weights)}, []

    return Job(CellRecord("F16", writer, used, settings, key, weights="F16.gguf"), out, fill)


def _convert(converter: Path, source: Path, weights: Path, log: Path) -> None:
    command = [sys.executable, str(converter), str(source), "--outtype", "f16", "--outfile", str(weights)]
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if status != 0 or not weights.is_file():
        raise InputError(f"{converter} could not convert {source} (exit status {status})", do=f"Its log is {log}")


def gguf_job(process: Child, f16: Path, out: Path, kind: str, keep: Sequence[str] = ()) -> Job:
    """The job of quantizing an F16 GGUF file as one of `KINDS`, with the linears of `keep` left in float16."""
    need("llama_cpp", "llama-cpp-python", "gguf", "Writing quantized GGUF files")
    if kind not in KINDS:
        raise InputError(f"There is no GGUF kind {kind!r}", f"one of {', '.join(KINDS)}")
    check_file(f16)
    used = versions("llama-cpp-python")
    settings: dict[str, Any] = {"kind": kind}
    request: dict[str, Any] = {"kind": kind, "source": str(f16.resolve())}
    if keep:
        settings |= {"keep": list(keep), "kept_type": KEPT_TYPE}
        request["keep"] = {exactly(tensor): KEPT_TYPE for tensor in _stored(f16, keep)}
    key = content_key(baseline=sha256(f16), settings=settings, versions=used)

    def fill(weights: Path, log: Path, report: JobReport | None) -> Outcome:
        process.run(request | {"out": str(weights.resolve())}, log, report)
        return {"tensor_types": _tensor_types(weights)}, _type_notes(weights, kind)

    return Job(CellRecord(mixed_name(kind, keep), "llama.cpp", used, settings, key, weights=f"{kind}.gguf"), out, fill)


def check_file(f16: Path) -> None:
    """Raise `InputError` where there is no such file."""
    if not f16.is_file():
        raise InputError(f"{f16} is not a file", "an F16 GGUF file", "Write one with interp.quantize.write.gguf_f16")


def _stored(f16: Path, keep: Sequence[str]) -> list[str]:
    """The file's names of the linears' weights."""
    checkpoint = open_checkpoint(f16)
    tensors, matrices = gguf_tensors(keep, checkpoint.architecture, checkpoint.n_blocks()), _matrices(f16)
    for linear, tensor in zip(keep, tensors, strict=True):
        if tensor not in matrices:
            raise InputError(f"{f16} stores no tensor {tensor!r} for the linear {linear!r}, so it cannot be kept alone")
    return tensors


def _matrices(file: Path) -> dict[str, tuple[str, int]]:
    """Type and row length of each matrix of a GGUF file."""
    from interp.formats.gguf_header import read_header

    tensors = read_header(file).tensors.values()
    return {tensor.name: (tensor.kind.name, tensor.shape[-1]) for tensor in tensors if len(tensor.shape) > 1}


def _tensor_types(file: Path) -> dict[str, int]:
    return dict(Counter(kind for kind, _ in _matrices(file).values()))


def _type_notes(file: Path, kind: str) -> list[str]:
    """llama.cpp takes another type, and only logs it, where rows are no multiple of 256 (K-quants) or 32 (Q8_0)."""
    block = 32 if kind == "Q8_0" else 256
    odd = {name: matrix for name, matrix in _matrices(file).items() if matrix[1] % block}
    if not odd:
        return []
    lengths = sorted({length for _, length in odd.values()})
    types = ", ".join(sorted({type_name for type_name, _ in odd.values()}))
    return [
        f"{len(odd)} matrices have rows of {' and '.join(map(str, lengths))}, no multiple of {block}, so llama.cpp "
        f"stored them as {types} instead: this is not a plain {kind}"
    ]
