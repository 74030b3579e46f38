"""One step of a study: what it asks of a cell, its options, its results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from interp.chat import NAMED_TEMPLATES, ChatTemplate
from interp.checkpoint import Checkpoint
from interp.errors import InputError
from interp.model import HookedModel
from interp.system_prompts import system_prompt
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.study.schema import Model, Study


@dataclass(frozen=True)
class Asked:
    """What every model of a study is asked, read from its files.

    Attributes:
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        template: the chat template and its system prompt.
        batch_size: prompts per forward pass.
    """

    harmful: PromptSet
    harmless: PromptSet
    template: ChatTemplate
    batch_size: int | None

    @property
    def sets(self) -> dict[str, PromptSet]:
        """Both prompt sets by their names in tables."""
        return {"harmful": self.harmful, "harmless": self.harmless}

    @classmethod
    def of(cls, study: Study) -> Asked:
        """Read a study's prompts.

        Raises:
            InputError: a prompt file that cannot be used; a system prompt that is empty or cannot be read.
        """
        from probes.refusal.request_sets import read_set

        prompts = study.prompts
        harmful, harmless = (
            read_set(prompt_source(study, source), prompts.limit) for source in (prompts.harmful, prompts.harmless)
        )
        template = prompts.template if prompts.template in NAMED_TEMPLATES else study.path(prompts.template)
        system = system_prompt(prompts.system, study.path)
        return cls(harmful, harmless, ChatTemplate(template, system), prompts.batch_size)


def prompt_source(study: Study, given: str) -> str:
    """A prompt set's source for `read_set`: names stay, files are found from the study's folder."""
    from probes.harness.prompts import BUILTIN
    from probes.refusal.request_sets import DATASETS

    return given if given in BUILTIN or given.startswith(DATASETS) else study.path(given)


@dataclass(frozen=True)
class StepContext:
    """A cell beside its baseline, ready to be measured.

    Attributes:
        study: all settings.
        asked: its prompts.
        cell: the cell's name.
        open_baseline: opens the baseline, once.
        open_cell: opens the cell, once; raises what keeps it from being opened.
        model: what the study says of the model that the cell belongs to.
        folder: of the model.
        finished: name of a result → its table as a step before this one wrote it, of this cell and the baseline.
        of_baseline: name of a result → its rows of the baseline as some other cell's part has them, or no rows.
        checkpoints: of the baseline and the cell.
        open_before: opens the model from before alignment, once; raises where the study does not say which it is.
        streaming: whether the models are streamed.
        open_whole: opens a model by its cell's name with all weights in memory; `completions` lets go of it again.
    """

    study: Study
    asked: Asked
    cell: str
    open_baseline: Callable[[], HookedModel]
    open_cell: Callable[[], HookedModel]
    model: Model
    folder: Path
    finished: Callable[[str], pd.DataFrame]
    of_baseline: Callable[[str], pd.DataFrame]
    checkpoints: tuple[Checkpoint, Checkpoint]
    open_before: Callable[[], HookedModel]
    streaming: bool
    open_whole: Callable[[str], HookedModel]

    @property
    def before(self) -> HookedModel:
        """The model from before alignment, opened."""
        return self.open_before()

    @property
    def baseline(self) -> HookedModel:
        """The baseline, opened."""
        return self.open_baseline()

    @cached_property
    def common(self) -> dict[str, Any]:
        """Keyword arguments that every probe's `measure` has."""
        return {"template": self.asked.template, "force": self.model.forced, "batch_size": self.asked.batch_size}

    def measure(self, measure: Callable[..., Result], **options: Any) -> Result:
        """Call a probe's `measure` on the baseline and this one cell."""
        cells = {self.cell: self.open_cell()}
        return measure(self.baseline, cells, self.asked.harmful, self.asked.harmless, **self.common, **options)


@dataclass(frozen=True)
class Step:
    """Something that is measured of every cell.

    Attributes:
        name: in the study file and of the result.
        run: measures one cell; its keyword-only parameters are the options that a study may set.
        needs: steps that come before.
        default: whether a study that names no probes has it.
        probe: where options come from, if not from `run`: the module of a probe with a `measure`.
        streams: whether it can do with streamed models; others need all weights in memory.
    """

    name: str
    run: Callable[..., Result | list[Result]]
    needs: tuple[str, ...] = ()
    default: bool = True
    probe: str = ""
    streams: bool = False

    @cached_property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The options that a study may set, with types and defaults."""
        function = getattr(import_module(self.probe), "measure") if self.probe else self.run  # noqa: B009
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _NOT_OPTIONS}

    def results(self, context: StepContext, options: Mapping[str, Any]) -> list[Result]:
        """Measure: the step's result first, then those that come with it.

        Raises:
            InputError: the models are streamed, and it needs them whole.
        """
        if context.streaming and not self.streams:
            raise InputError(
                f"{self.name} needs whole models in memory, and those of {context.model.name} are streamed",
                'a pair that fits into memory, or stream = false for [[models]] whose "auto" is wrong about it',
                f"Leave {self.name} out of [probes] run, or give a narrower dtype",
            )
        measured = self.run(context, **options)
        return measured if isinstance(measured, list) else [measured, *measured.beside]


_NOT_OPTIONS = {"template", "force", "batch_size", "refusals", "outcome", "attribution", "plan"}
"""Parameters that the study itself gives."""


def probe(name: str, default: bool = True, needs: tuple[str, ...] = (), streams: bool = False) -> Step:
    """The step of a probe whose `measure(baseline, cells, harmful, harmless, …)` needs nothing else."""
    module = f"probes.{name}"

    def run(context: StepContext, **options: Any) -> Result:
        return context.measure(import_module(module).measure, **options)

    return Step(name, run, needs, default, module, streams)
