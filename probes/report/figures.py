"""The figures of a report as files: SVG, which stays sharp and can be edited, and PNG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from interp.files import atomic_file
from probes.report.svg import Plot


def write_figures(run: Path, folder: Path) -> list[Path]:
    """Save every figure of a run's report as SVG and PNG; a file of that name is replaced when the new one is complete.

    Args:
        run: the folder that `probes.demo`, `probes.study` or `probes.refusal` wrote.
        folder: where they go; made if it is not there.

    Returns:
        The paths, two per figure, in the report's order.

    Raises:
        InputError: as `probes.report.files.write`; or the folder cannot be written.

    Example:
        >>> write_figures(Path("runs/demo"), Path("figures"))
    """
    from probes.report.run import read_run
    from probes.report.sections import build

    return [path for plot in plots(build(read_run(run))) for path in save(plot, folder)]


def plots(content: Any) -> Iterator[Plot]:
    """Every figure in what the sections show, in their order."""
    if isinstance(content, Plot):
        yield content
    elif isinstance(content, Mapping):
        yield from plots(list(content.values()))
    elif isinstance(content, list | tuple):
        for item in content:
            yield from plots(item)
    elif is_dataclass(content):
        yield from plots([getattr(content, field.name) for field in fields(content)])


def save(plot: Plot, folder: Path) -> tuple[Path, Path]:
    """Save one figure under its key.

    Returns:
        The paths of SVG and PNG.
    """
    vector, raster = (folder / f"{plot.key}{suffix}" for suffix in (".svg", ".png"))
    with atomic_file(vector) as temporary:
        temporary.write_text(plot.document(), encoding="utf-8")
    with atomic_file(raster) as temporary:
        temporary.write_bytes(plot.image())
    return vector, raster
