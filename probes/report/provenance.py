"""Methods and provenance: what was measured with which versions, files, settings, in which time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from probes.harness.names import BASELINE
from probes.harness.results import Result, checkpoints_of
from probes.report.run import Run

_FOLDERS = re.compile(r"(?<![\w.:/~-])/(?:[^\s/:'\"]+/)+(?=[^\s/])")
_SHOWN_ELSEWHERE = {"prompts", "baseline", "cells", "template_sha256", "system"}


def build(run: Run) -> dict[str, Any]:
    """Versions, checkpoints, prompts and settings of every result, warnings, times, the study file."""
    matrix = run.tables["matrix"]
    return {
        "versions": [(package, ", ".join(versions)) for package, versions in run.versions.items()],
        "models": [_model(name, results, _settings(matrix, name)) for name, results in run.models.items()],
        "results": [_result(name, result) for name, result in _all(run)],
        "warnings": _warnings(run),
        "seconds": _seconds(run),
        "thresholds": matrix.settings.get("thresholds", {}),
        "study": run.study,
        "state": _state(run.state),
    }


def _state(state: Mapping[str, Any]) -> str:
    """What study.json says without the folders of this machine: the page is shared."""
    shown = {key: value for key, value in state.items() if key != "directory"}
    return _FOLDERS.sub("", json.dumps(shown, indent=2, ensure_ascii=False)) if shown else ""


def _all(run: Run) -> list[tuple[str, Result]]:
    """(where, result) of everything in the run."""
    whole = [("", result) for result in run.tables.values()]
    return whole + [(model, result) for model, results in run.models.items() for result in results.values()]


def _settings(matrix: Result, model: str) -> Mapping[str, Any]:
    settings = matrix.settings.get(model, {})
    return settings if isinstance(settings, Mapping) else {}


def _model(name: str, results: Mapping[str, Result], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoints and prompts of one model."""
    if not settings.get("cells"):
        settings = next(
            (r.settings for r in results.values() if isinstance(r.settings.get("cells"), Mapping)), settings
        )
    baseline, cells = checkpoints_of(settings)
    checkpoints = ({BASELINE: baseline} if baseline else {}) | cells
    return {
        "model": name,
        "checkpoints": [(cell, _checkpoint(about)) for cell, about in checkpoints.items()],
        "prompts": [p for p in _mapping(settings.get("prompts")).values() if isinstance(p, Mapping)],
        "template": settings.get("template", ""),
        "template_sha256": settings.get("template_sha256", ""),
        "system": settings.get("system", ""),
        "dtype": settings.get("dtype", ""),
        "device": settings.get("device", ""),
        "quality": settings.get("quality", ""),
    }


def _checkpoint(described: Mapping[str, Any]) -> dict[str, str]:
    quantization = _mapping(described.get("quantization"))
    told = ", ".join(f"{key} {_short(value)}" for key, value in quantization.items() if value not in (None, {}, ""))
    path = str(described.get("path", ""))
    return {
        "path": "/".join(path.rsplit("/", 2)[-2:]),
        "format": str(described.get("format", "")),
        "quantization": told,
        "sha256": str(described.get("sha256", "")),
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _result(model: str, result: Result) -> dict[str, Any]:
    own = {k: v for k, v in result.settings.items() if k not in _SHOWN_ELSEWHERE and not _is_model(v)}
    return {
        "model": model,
        "probe": result.probe,
        "rows": len(result.table),
        "seconds": result.seconds,
        "settings": ", ".join(f"{key} {_short(value)}" for key, value in own.items() if key != "thresholds"),
    }


def _is_model(value: Any) -> bool:
    return isinstance(value, Mapping) and "prompts" in value


def _short(value: Any) -> str:
    """A setting on one line; long lists by their length."""
    if isinstance(value, list) and len(value) > 8:
        return f"({len(value)} values)"
    if isinstance(value, Mapping):
        return " ".join(f"{key}×{_short(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + " ".join(map(_short, value)) + "]"
    return str(value)


def _warnings(run: Run) -> list[str]:
    """Every warning once, with the model it belongs to."""
    told = [f"{model}: {warning}" if model else warning for model, r in _all(run) for warning in r.warnings]
    return list(dict.fromkeys(told))


def _seconds(run: Run) -> list[tuple[str, float]]:
    stages = run.tables["matrix"].settings.get("seconds", {})
    return [(str(stage), float(took)) for stage, took in _mapping(stages).items()]
