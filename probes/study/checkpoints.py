"""The checkpoints of a study's models: where they are, and making what an organism still lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.files import cache_directory
from probes.harness.comparison import BASELINE
from probes.study.schema import Model, Study

N_CALIBRATION_TEXTS = 128
StageReport = Callable[[str, float, float], None]
"""Called with what is being done, how much of it is, and how much there is of it."""


def located(study: Study, model: Model) -> dict[str, Path | None]:
    """The baseline and every cell → where it is on disk, None where it is not there (yet).

    Downloads and writes nothing.
    """
    from interp.quantize.cells import read_record

    places: dict[str, Path | None] = {cell.called: _on_disk(study.path(cell.path)) for cell in model.cells}
    if model.organism is None:
        return {BASELINE: _on_disk(study.path(model.baseline or "")), **places}
    organism = _organism_path(model)
    written: dict[str, Path | None] = {}
    for name in model.quantize:
        directory = cells_directory(organism) / name
        record = read_record(directory) if directory.is_dir() else None
        written[name] = None if record is None else directory / record.weights
    return {BASELINE: organism if organism.exists() else None, **written, **places}


def prepare(study: Study, model: Model, report: StageReport) -> dict[str, Path | InputError]:
    """As `located`, after training, quantizing and downloading what is missing; what went wrong in place of a path.

    Raises:
        InputError: the baseline cannot be had.
    """
    from interp.hub import resolve

    if model.organism is None:
        found: dict[str, Path | InputError] = {BASELINE: resolve(study.path(model.baseline or ""))}
    else:
        found = dict(_organism(model, report))
    for cell in model.cells:
        try:
            found[cell.called] = resolve(study.path(cell.path))
        except InputError as error:
            found[cell.called] = error
    return found


def open_cell(model: Model, name: str, path: Path) -> Checkpoint:
    """Open a cell's checkpoint, which must have the format that the file says.

    Raises:
        InputError: it cannot be opened, or has another format.
    """
    checkpoint = open_checkpoint(path)
    said = next((cell.format for cell in model.cells if cell.called == name), None)
    if said is not None and checkpoint.format != said:
        raise InputError(
            f"{path} is {checkpoint.format}, the study file says format = {said!r}", do="Correct the path or the format"
        )
    return checkpoint


def cells_directory(organism: Path) -> Path:
    """Where an organism's written cells are kept."""
    return cache_directory() / "cells" / organism.name


def _organism_path(model: Model) -> Path:
    from interp.organisms.training import organism_path

    return organism_path(model.organism or "", model.seed, model.alignment)


def _organism(model: Model, report: StageReport) -> Mapping[str, Path]:
    from interp.organisms import training
    from interp.quantize.write import write_cells

    organism = training.train(
        model.organism or "",
        model.seed,
        model.alignment,
        progress=lambda done, total: report("train", done, total),
    )
    if not model.quantize:
        return {BASELINE: organism}
    shares = dict.fromkeys(model.quantize, 0.0)

    def progress(cell: str, share: float) -> None:
        shares[cell] = share
        report("quantize", sum(shares.values()), len(shares))

    texts = training.calibration_texts(N_CALIBRATION_TEXTS)
    written = write_cells(organism, cells_directory(organism), texts, tuple(model.quantize), progress)
    return {BASELINE: organism, **written}


def _on_disk(given: str) -> Path | None:
    """A path, or the folder into which a hub id was downloaded before."""
    from interp.hub import HUB_ID

    path = Path(given)
    if path.exists():
        return path
    if not HUB_ID.match(given):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(given, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
