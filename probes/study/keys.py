"""What determines the parts of a study, as hashes: a part whose hash is not today's is stale."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from interp.quantize.cells import content_hash, content_key
from interp.system_prompts import OWN
from probes.harness.results import SCHEMA_VERSION as RESULT_SCHEMA
from probes.harness.results import versions
from probes.refusal.settings import OF_SERVERS, served_as
from probes.study.checkpoints import on_disk
from probes.study.schema import Model, Study, sha256_of
from probes.study.step import Asked, Step
from probes.study.steps import ALWAYS as COMPLETIONS
from probes.study.steps import BY_NAME, options_of

SCHEMA_VERSION = 1
"""The schema of run folders."""
_WHERE: dict[str, Any] = {"out": True, "models": {"__all__": {"num_cpus", "num_gpus", "server", "stream"}}}
"""What a study file says of machines and folders, on which no number depends; which of a server's models answers is
part of a part's key."""
_DECIDING = ("quantscope", "torch", "transformers")
"""Packages whose other versions make every part stale."""


def agreement(study: Study, asked: Asked) -> dict[str, str]:
    """What all workers on a study must have in common, by name: hashes, and versions of packages."""
    installed = versions()
    return {
        "the study file": content_key(study=study.model_dump(mode="json", exclude=_WHERE)),
        "the harmful prompts": asked.harmful.sha256,
        "the harmless prompts": asked.harmless.sha256,
        "the chat template": sha256_of(asked.template.name),
        "the system prompt": content_key(system=asked.template.system),
        **{f"the versions of {name}": installed[name] for name in _DECIDING},
    }


class Keys:
    """What determines each part of a study, as hashes."""

    def __init__(self, study: Study, asked: Asked) -> None:
        self.study = study
        installed = versions()
        self._common: dict[str, Any] = {
            "schema": [SCHEMA_VERSION, RESULT_SCHEMA],
            "versions": {name: installed[name] for name in _DECIDING},
            "harmful": asked.harmful.sha256,
            "harmless": asked.harmless.sha256,
            "template": [study.prompts.template, sha256_of(asked.template.name)],
        }
        if asked.template.system != OWN:  # a part that was measured before there were system prompts is not stale
            self._common["system"] = asked.template.system

    def key(self, model: Model, step: Step, name: str, baseline: Path | None, cell: Path | None) -> str:
        """The hash of a part; "" where one of its checkpoints is not there or cannot be read.

        Args:
            model: whose part it is.
            step: of it.
            name: of the cell.
            baseline: the model's baseline.
            cell: the cell.
        """
        try:
            checkpoints = [_content(str(path), _stamp(path)) for path in (baseline, cell) if path is not None]
            beside = self._beside(model, step, name)
        except OSError:
            return ""
        if len(checkpoints) < 2:
            return ""
        return content_key(
            **self._common,
            **beside,
            checkpoints=checkpoints,
            computing=[model.dtype, model.device, model.forced],
            steps=[self._step(each) for each in (step, *(BY_NAME[name] for name in step.needs))],
        )

    def _beside(self, model: Model, step: Step, name: str) -> dict[str, Any]:
        """What a step reads of a model beside its checkpoints."""
        if step.name == "reversion" and model.before is not None:
            before = on_disk(self.study.path(model.before))
            return {"before": None if before is None else _content(str(before), _stamp(before))}
        if step.name == "coverage" and model.calibration is not None:
            return {"calibration": sha256_of(self.study.path(model.calibration))}
        if COMPLETIONS in (step.name, *step.needs):
            servers = [model.server, *(cell.server for cell in model.cells if cell.called == name)]
            if any(served := [served_as(server or "") for server in servers]):
                return {"served_as": served}
        return {}

    def _step(self, step: Step) -> list[Any]:
        options = {name: _option(value) for name, value in options_of(self.study, step).items()}
        if step.name == "quality" and self.study.prompts.limit is not None:  # it takes as many of its own requests
            options["limit"] = self.study.prompts.limit
        if step.name != COMPLETIONS:
            return [step.name, options]
        behaviour = self.study.behaviour.model_dump()
        for name, default in OF_SERVERS.items():  # a part that was measured before there were servers is not stale
            if behaviour[name] == default or name == "gpu_memory":
                del behaviour[name]
        files = {name: sha256_of(self.study.path(behaviour[name] or "")) for name in ("truthfulness", "bias")}
        return [step.name, behaviour | files]


def _option(value: Any) -> Any:
    return sha256_of(value) if isinstance(value, Path) else str(value)


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a checkpoint's files: while they are the same it is not read again."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file())


@lru_cache(maxsize=1024)
def _content(path: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    return content_hash(Path(path))


def judges_key(study: Study) -> str:
    """The hash of who judges and what they are asked."""
    template = study.judges.template
    return content_key(judges=study.judges.model_dump(), sha256=sha256_of(study.path(template)) if template else "")
