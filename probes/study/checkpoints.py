"""The checkpoints of a study's models: where they are, and making what an organism still lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from interp import claims
from interp.checkpoint import Checkpoint, open_checkpoint
from interp.claims import Owner
from interp.cli import log
from interp.errors import InputError
from interp.files import cache_directory
from interp.quantize.settings import KINDS
from probes.harness.names import BASELINE
from probes.study.schema import Model, Study

StageReport = Callable[[str, float, float], None]
"""Called with what is being done, how much of it is, and how much there is of it."""


def located(study: Study, model: Model) -> dict[str, Path | None]:
    """The baseline and every cell → where it is on disk, None where it is not there (yet).

    Downloads and writes nothing.
    """
    places: dict[str, Path | None] = {cell.called: on_disk(study.path(cell.path)) for cell in model.cells}
    if model.organism is None:
        baseline = on_disk(study.path(model.baseline or ""))
    else:
        organism = _organism_path(model)
        baseline = organism if organism.exists() else None
    written = {name: None if baseline is None else _written(baseline, name) for name in model.quantize}
    return {BASELINE: baseline, **written, **places}


def _written(baseline: Path, name: str) -> Path | None:
    """A cell that `prepare` wrote before."""
    from interp.quantize.cells import read_record

    directory = cells_directory(baseline) / name
    record = read_record(directory) if directory.is_dir() else None
    return None if record is None else directory / record.weights


def prepare(study: Study, model: Model, report: StageReport) -> dict[str, Path | InputError]:
    """What `located` gives after training, quantizing and downloading what is missing; errors in place of paths.

    Raises:
        InputError: the baseline cannot be had.
    """
    from interp.hub import resolve

    baseline = resolve(study.path(model.baseline or "")) if model.organism is None else _organism_path(model)
    with _alone(model, baseline):
        if model.organism is None:
            places: dict[str, Path | InputError] = {BASELINE: baseline, **_quantized(study, model, baseline, report)}
        else:
            places = dict(_organism(model, report))
    for cell in model.cells:
        try:
            places[cell.called] = resolve(study.path(cell.path))
        except InputError as error:
            places[cell.called] = error
    return places


@contextmanager
def _alone(model: Model, baseline: Path) -> Iterator[None]:
    """Let one of several workers write what is made of a baseline, while the others wait for it."""

    def waiting(owner: Owner | None) -> None:
        writer = owner or "another process"
        log.print(f"{model.name}: waiting for {writer}, who writes its cells", markup=False, highlight=False)

    cells = cells_directory(baseline)
    with ExitStack() as holding:
        if model.organism is not None or model.quantize:
            with suppress(OSError):  # a cache that can only be read, in which everything is
                holding.enter_context(claims.held(cells.with_name(f".{cells.name}"), waiting))
        yield


def before_alignment(study: Study, model: Model, baseline: Path) -> Path:
    """The checkpoint from before a model learned to refuse: an organism's own, or what the study says.

    Raises:
        InputError: the study says nothing of it.
    """
    from interp.hub import resolve
    from interp.organisms import training

    if model.organism is not None:
        return training.before_alignment(baseline)
    if model.before is None:
        raise InputError(
            f"{model.name}: reversion needs the model from before alignment", do='Say before = "PATH" of the model'
        )
    return resolve(study.path(model.before))


def open_cell(model: Model, name: str, path: Path) -> Checkpoint:
    """Open a cell's checkpoint, which must have the format that the file says.

    Raises:
        InputError: it cannot be opened, or has another format.
    """
    checkpoint = open_checkpoint(path)
    stated_format = next((cell.format for cell in model.cells if cell.called == name), None)
    if stated_format is not None and checkpoint.format != stated_format:
        raise InputError(
            f"{path} is {checkpoint.format}, the study file says format = {stated_format!r}",
            do="Correct the path or the format",
        )
    return checkpoint


def cells_directory(baseline: Path) -> Path:
    """Where the cells that are written of a baseline are kept: of an organism under its name, else by where it lies."""
    cells = cache_directory() / "cells"
    if baseline.parent == cache_directory() / "organisms":
        return cells / baseline.name
    place = hashlib.sha256(str(baseline.resolve()).encode()).hexdigest()
    return cells / f"{baseline.name}-{place[:12]}"


def _organism_path(model: Model) -> Path:
    from interp.organisms.training import organism_path

    return organism_path(model.organism or "", model.seed, model.alignment, constraint=model.constraint)


def _organism(model: Model, report: StageReport) -> Mapping[str, Path]:
    from interp.organisms import training
    from interp.quantize.calibration import calibration_of

    organism = training.train(
        model.organism or "",
        model.seed,
        model.alignment,
        progress=lambda done, total: report("train", done, total),
        constraint=model.constraint,
    )
    written = _write(organism, model.quantize, calibration_of(organism), report) if model.quantize else {}
    return {BASELINE: organism, **written}


def _quantized(study: Study, model: Model, baseline: Path, report: StageReport) -> Mapping[str, Path | InputError]:
    """The cells that are written of a user's own model; where one cannot be, the others are all the same."""
    from interp.quantize.calibration import calibration_of

    if not model.quantize:
        return {}
    calibration_file = None if model.calibration is None else Path(study.path(model.calibration))
    try:
        texts = calibration_of(baseline, calibration_file) if set(model.quantize) - set(KINDS) else []
        return _write(baseline, model.quantize, texts, report)
    except InputError:
        return {name: _write_one(baseline, name, calibration_file, report) for name in model.quantize}


def _write_one(baseline: Path, name: str, calibration: Path | None, report: StageReport) -> Path | InputError:
    from interp.quantize.calibration import calibration_of

    try:
        texts = [] if name in KINDS else calibration_of(baseline, calibration)
        return _write(baseline, [name], texts, report)[name]
    except InputError as error:
        return error


def _write(baseline: Path, cells: Sequence[str], texts: Sequence[str], report: StageReport) -> dict[str, Path]:
    from interp.quantize.write import write_cells

    shares = dict.fromkeys(cells, 0.0)

    def progress(cell: str, share: float) -> None:
        shares[cell] = share
        report("quantize", sum(shares.values()), len(shares))

    return write_cells(baseline, cells_directory(baseline), texts, tuple(cells), progress)


def on_disk(path_or_id: str) -> Path | None:
    """A path, or the folder into which a hub id was downloaded before."""
    from interp.hub import HUB_ID

    path = Path(path_or_id)
    if path.exists():
        return path
    if not HUB_ID.match(path_or_id):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path_or_id, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
