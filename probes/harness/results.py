"""How results are kept: one tidy table as parquet, and beside it a JSON with everything needed to measure it again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.documents import checked, read_json_object
from interp.errors import InputError
from interp.files import atomic_file, sha256
from probes.harness.names import BASELINE
from probes.harness.parquet_files import read_parquet

SCHEMA_VERSION = 1
_PACKAGES = ("quantscope", "torch", "transformers", "safetensors", "gguf", "compressed-tensors", "numpy", "pandas")


def versions() -> dict[str, str]:
    """Versions of Python, the machine's architecture and the packages that can change a number."""
    environment = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            environment[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            environment[package] = "absent"
    return environment


class _Document(BaseModel):
    """What is used of a result's JSON."""

    model_config = ConfigDict(strict=True)
    probe: str
    table: str = Field(pattern=r"^[^/\\\x00]+\.parquet$")
    settings: dict[str, Any]
    warnings: list[str]
    seconds: float | None = None
    table_sha256: str | None = None


@dataclass
class Result:
    """A probe's table and what it was measured with.

    Attributes:
        probe: the probe's name, and the stem of the files.
        table: tidy, one row per cell, layer, neuron … as the probe's docstring says.
        settings: everything that determines the numbers: options, seeds, dtypes, hashes of checkpoints and prompts.
        warnings: what the user was told while measuring.
        seconds: how long measuring took, wall-clock; None where nobody looked.

    Example:
        >>> result = entropy.measure(baseline, cells, harmful, harmless)
        >>> result.table, result.settings["dtype"], result.write(Path("results"))
    """

    probe: str
    table: pd.DataFrame
    settings: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None

    def __repr__(self) -> str:
        cells, asked = self.settings.get("cells"), self.settings.get("prompts")
        parts = [f"{len(self.table)} rows"]
        parts += [f"cells {', '.join(map(str, cells))}"] if isinstance(cells, (list, dict)) and cells else []
        for side, about in asked.items() if isinstance(asked, dict) else ():
            parts += [f"{about['n']} {side} prompts"] if isinstance(about, dict) and "n" in about else []
        return f"<{type(self).__name__} of {self.probe}: {', '.join(parts)}>"

    def describe(self) -> dict[str, Any]:
        """The JSON document without the table."""
        return {
            "schema_version": SCHEMA_VERSION,
            "probe": self.probe,
            "settings": dict(self.settings),
            "warnings": list(self.warnings),
            "seconds": self.seconds,
            "versions": versions(),
        }

    def records(self) -> list[dict[str, Any]]:
        """The table's rows; undefined numbers are null."""
        return json.loads(self.table.to_json(orient="records", double_precision=15))

    def to_json(self) -> str:
        """The whole result as one JSON document."""
        return json.dumps(self.describe() | {"rows": self.records()}, indent=2)

    @property
    def beside(self) -> Sequence[Result]:
        """Further results of the same measurement, written with it; some subclasses have them."""
        return ()

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write `<probe>.parquet` and `<probe>.json` into a directory, each atomically, and return their paths.

        What is `beside` comes first. The document comes last and holds the table's hash, so that one of each from two
        measurements is noticed.

        Args:
            directory: made if it is not there.

        Raises:
            InputError: the directory cannot be written.
        """
        for result in self.beside:
            result.write(directory)
        parquet, document = directory / f"{self.probe}.parquet", directory / f"{self.probe}.json"
        try:
            with atomic_file(parquet) as temporary:
                self.table.to_parquet(temporary)
                table_sha256 = sha256(temporary)
            with atomic_file(document) as temporary:
                described = self.describe() | {
                    "table": parquet.name,
                    "n_rows": len(self.table),
                    "table_sha256": table_sha256,
                }
                temporary.write_text(json.dumps(described, indent=2))
        except OSError as error:
            raise InputError(
                f"Cannot write results to {directory}: {error.strerror or error}",
                "a directory that can be written, with space left",
                "Give another one with --out",
            ) from error
        return parquet, document


def checkpoints_of(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """How settings describe the baseline and each cell by name; empty where they do not, or in another form.

    Args:
        settings: of a result, which may come from anywhere.
    """
    baseline, cells = settings.get(BASELINE), settings.get("cells")
    by_name = cells.items() if isinstance(cells, Mapping) else ()
    described = {str(name): dict(cell) for name, cell in by_name if isinstance(cell, Mapping)}
    return dict(baseline) if isinstance(baseline, Mapping) else {}, described


def join_cells(parts: Sequence[Result]) -> Result:
    """One result of several of one probe that each hold the baseline and some cells: the baseline's rows once.

    Args:
        parts: at least one; what their settings say of cells is put together, the rest is the first one's.
    """
    first, *others = parts
    tables = [first.table, *(part.table[part.table["cell"] != BASELINE] for part in others)]
    settings = dict(first.settings)
    if isinstance(settings.get("cells"), dict):
        settings["cells"] = {cell: about for part in parts for cell, about in part.settings["cells"].items()}
    warnings = list(dict.fromkeys(warning for part in parts for warning in part.warnings))
    seconds = round(sum(part.seconds or 0.0 for part in parts), 3)
    return Result(first.probe, pd.concat(tables, ignore_index=True), settings, warnings, seconds or None)


def read_result(document: Path) -> Result:
    """Read what `Result.write` wrote.

    Args:
        document: the JSON file; its table lies beside it.

    Raises:
        InputError: missing, damaged, or of another schema version.

    Example:
        >>> read_result(Path("results/entropy.json")).table
    """
    try:
        content = read_json_object(document)
    except InputError as error:
        problem = f"{document} is not a Quantscope result ({error})"
        raise InputError(problem, "the JSON file that a probe wrote", "Measure it again") from error
    version = content.get("schema_version")
    if version is None:
        raise InputError(f"{document} is not a Quantscope result", "the JSON file that a probe wrote")
    if version != SCHEMA_VERSION:
        raise InputError(f"{document} has schema version {version}", f"version {SCHEMA_VERSION}", "Measure it again")
    described = checked(_Document, content, str(document))
    parquet = document.with_name(described.table)
    try:
        table = read_parquet(parquet)
    except InputError as error:
        problem = f"{parquet} is missing or damaged ({error})"
        raise InputError(problem, f"the table of {document}", "Measure it again") from error
    if described.table_sha256 not in (None, digest := sha256(parquet)):
        raise InputError(
            f"{parquet} is not the table that {document} was written with (its SHA-256 is {digest[:12]}…)",
            "files of one measurement",
            "Measure it again",
        )
    return Result(described.probe, table, described.settings, described.warnings, described.seconds)
