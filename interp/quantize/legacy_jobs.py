"""Cells that the writers of 2024 write: AWQ by AutoAWQ, GPTQ by AutoGPTQ.

They stopped at transformers 4, so they live in an environment of their own, which `make legacy` makes, and run there as
a script (`interp.quantize.legacy_worker`). Texts are tokenized here, so that every writer is calibrated on the same
tokens.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from interp.checkpoint import Checkpoint
from interp.child import Child, JobReport
from interp.errors import InputError
from interp.quantize.calibration import token_rows
from interp.quantize.cells import CellRecord, Job, Outcome, content_hash, content_key
from interp.quantize.gptqmodel_jobs import check_settings, described_texts, fold_notes
from interp.quantize.settings import BITS, WRITERS
from interp.tokenizer_files import FILES, JSON_OBJECTS, open_tokenizer

VARIABLE = "QUANTSCOPE_LEGACY"
"""The environment variable that names another place than the clone's `.venv-legacy`."""
PACKAGES = {"autoawq": ("AutoAWQ", "autoawq"), "autogptq": ("AutoGPTQ", "auto-gptq")}
"""What a writer is called, and its package."""
MODELS = {
    "autoawq": ("gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3"),
    "autogptq": ("gemma", "llama", "mistral", "qwen2"),
}
"""Dense architectures in a writer's own table that this project reads as well."""
MULTIPLES = {"autoawq": (32, 64), "autogptq": (32, 32)}
"""What each linear's inputs and outputs must be multiples of."""
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


SEARCHED = {"search": "on a copy of the weights"}
"""In the record of AutoAWQ's cells: those without it were damaged on a CPU (`legacy_worker`), and are written again."""


def legacy_directory() -> Path:
    """Where the environment of the writers of 2024 is, or would be."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(__file__).resolve().parents[2] / ".venv-legacy"


def legacy_process() -> Child:
    """The child in which AutoAWQ and AutoGPTQ run."""
    script = Path(__file__).with_name("legacy_worker.py")
    python = str(legacy_directory().absolute() / "bin" / "python")
    # -I: nothing of this project, nor of its environment, is on the child's search path.
    return Child("interp.quantize.legacy_worker", _ENVIRONMENT, [python, "-I", str(script)])


def legacy_versions(writer: str) -> dict[str, str]:
    """Versions in the writers' own environment, read without starting it.

    Raises:
        InputError: there is no such environment, or the writer is not in it.
    """
    directory = legacy_directory()
    places = [str(place) for place in directory.glob("lib/python*/site-packages")]
    installed = {
        str(distribution.metadata["Name"]).lower().replace("_", "-"): distribution.version
        for distribution in metadata.distributions(path=places)
    }
    title, package = PACKAGES[writer]
    needed = (package, "torch", "transformers")
    if missing := [name for name in needed if name not in installed]:
        raise InputError(
            f"{title} has no environment: {missing[0]} is not installed in {directory}",
            "the environment in which AutoAWQ and AutoGPTQ run, which is apart because they need transformers 4",
            f"Run `make legacy` in a clone, or name the environment with {VARIABLE}",
        )
    return {name: installed[name] for name in needed}


def legacy_job(
    process: Child,
    writer: str,
    checkpoint: Checkpoint,
    out: Path,
    calibration: Sequence[str],
    settings: dict[str, Any],
) -> Job:
    """The job of writing a dense checkpoint's AWQ or GPTQ cell with the writer "autoawq" or "autogptq".

    Args:
        process: where the writer runs.
        writer: one of `WRITERS`.
        checkpoint: the baseline.
        out: the cell's directory.
        calibration: texts.
        settings: as for `gptqmodel_job`.

    Raises:
        InputError: no environment; no texts; an architecture, bits or a group size that the writer cannot write.
    """
    cell, (title, _) = WRITERS[writer], PACKAGES[writer]
    used = legacy_versions(writer)
    settings = {"bits": BITS} | settings
    _check_model(writer, checkpoint)
    check_settings(cell, checkpoint, calibration, settings)
    if writer == "autoawq" and settings["group_size"] == -1:
        raise InputError("AutoAWQ cannot write one group a row", "a group size such as 128, 64 or 32")
    described = settings | described_texts(calibration) | (SEARCHED if writer == "autoawq" else {})
    key = content_key(cell=cell, baseline=content_hash(checkpoint.path), settings=described, versions=used)
    request: dict[str, Any] = {"method": cell.lower(), "source": str(checkpoint.path.resolve())} | settings

    def fill(weights: Path, log: Path, report: JobReport | None) -> Outcome:
        rows = token_rows(open_tokenizer(checkpoint.path), calibration, _longest(checkpoint))
        reply = process.run(request | {"rows": rows, "out": str(weights.resolve())}, log, report)
        for name in (*FILES, *JSON_OBJECTS):  # neither writer saves a tokenizer
            if (checkpoint.path / name).is_file():
                shutil.copyfile(checkpoint.path / name, weights / name)
        return reply, fold_notes(title, reply["folds"], checkpoint.architecture)

    return Job(CellRecord(cell, title, used, described, key), out, fill)


def _check_model(writer: str, checkpoint: Checkpoint) -> None:
    model_type = checkpoint.architecture.model_type
    if model_type not in MODELS[writer]:
        raise InputError(
            f"{PACKAGES[writer][0]} cannot write {checkpoint.path}: it does not know {model_type!r}",
            f"a model of type {', '.join(MODELS[writer])}",
            "Leave --writer out: GPTQModel knows more architectures",
        )
    for name in checkpoint.linears():
        n_out, n_in = checkpoint.weight_shape(name)
        for what, size, multiple in zip(("inputs", "outputs"), (n_in, n_out), MULTIPLES[writer], strict=True):
            if size % multiple:
                raise InputError(
                    f"{PACKAGES[writer][0]} cannot write {checkpoint.path}: its linear {name!r} has {size} {what}",
                    f"a multiple of {multiple}",
                    "Leave --writer out: GPTQModel takes other sizes",
                )


def _longest(checkpoint: Checkpoint) -> int:
    """The model's context, in tokens."""
    return int(checkpoint.config.max_position_embeddings)
