"""The child process that quantizes GGUF files with llama.cpp; see `interp.child`."""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from interp.child import JobReport, serve

_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def write(job: dict[str, Any], report: JobReport) -> dict[str, Any]:
    """Quantize the F16 GGUF `source` into `out` as llama.cpp's own mixture `kind`, e.g. "Q4_K_M".

    `keep`, where the job has it, maps regular expressions to the types of the tensors that they match.
    """
    import llama_cpp

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace")
        print(line, end="", flush=True)
        if match := _TENSOR.search(line):
            report(int(match[1]), int(match[2]))

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{job['kind']}")
    settings.nthread = os.cpu_count() or 1
    if keep := job.get("keep"):
        settings.tt_overrides = _overrides(keep)
    status = llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), settings)
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}")
    return {}


def _overrides(keep: dict[str, str]) -> Any:
    """llama.cpp's list of (pattern, type), which ends with an empty entry."""
    import llama_cpp

    entries = (llama_cpp.llama_model_tensor_override * (len(keep) + 1))()
    for entry, (pattern, kind) in zip(entries, keep.items(), strict=False):
        entry.pattern, entry.type = pattern.encode(), getattr(llama_cpp, f"GGML_TYPE_{kind}")
    entries[len(keep)].pattern, entries[len(keep)].type = None, llama_cpp.GGML_TYPE_COUNT
    return entries


if __name__ == "__main__":
    serve(write)
