"""The steps of a study: what is measured on a cell while it is open. A new probe is one more line in `STEPS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from interp.chat import NAMED_TEMPLATES
from interp.checkpoint import Checkpoint
from interp.documents import read_text
from interp.model import HookedModel
from probes.calibration import refusals_from
from probes.prompts import PromptSet
from probes.refused import counted_by, decide
from probes.results import Result
from probes.study_file import Model, Study


@dataclass(frozen=True)
class Asked:
    """What every model of a study is asked, read from its files.

    Attributes:
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        template: "auto", "none" or a file.
        batch_size: prompts per forward pass.
    """

    harmful: PromptSet
    harmless: PromptSet
    template: str
    batch_size: int | None

    @classmethod
    def of(cls, study: Study) -> Asked:
        """Read a study's prompts.

        Raises:
            InputError: a prompt file that cannot be used.
        """
        from probes.requests import read_set

        prompts = study.prompts
        harmful, harmless = (
            read_set(prompt_source(study, given), prompts.limit) for given in (prompts.harmful, prompts.harmless)
        )
        template = prompts.template if prompts.template in NAMED_TEMPLATES else study.path(prompts.template)
        return cls(harmful, harmless, template, prompts.batch_size)


def prompt_source(study: Study, given: str) -> str:
    """A prompt set's source for `probes.requests.read_set`: names stay, files are found from the study's folder."""
    from probes.prompts import BUILTIN
    from probes.requests import DATASETS

    return given if given in BUILTIN or given.startswith(DATASETS) else study.path(given)


@dataclass(frozen=True)
class Bench:
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
    """

    name: str
    run: Callable[..., Result | list[Result]]
    needs: tuple[str, ...] = ()
    default: bool = True
    probe: str = ""

    @cached_property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The options that a study may set, with types and defaults."""
        function = getattr(import_module(self.probe), "measure") if self.probe else self.run  # noqa: B009
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _NOT_OPTIONS}

    def results(self, bench: Bench, options: Mapping[str, Any]) -> list[Result]:
        """Measure: the step's result first, then those that come with it."""
        measured = self.run(bench, **options)
        return measured if isinstance(measured, list) else [measured, *measured.beside]


_NOT_OPTIONS = {"template", "force", "batch_size", "refusals", "outcome", "attribution", "plan"}
"""Parameters that the study itself gives."""


def probe(name: str, default: bool = True, needs: tuple[str, ...] = ()) -> Step:
    """The step of a probe whose `measure(baseline, cells, harmful, harmless, …)` needs nothing else."""
    module = f"probes.{name}"

    def run(bench: Bench, **options: Any) -> Result:
        return bench.measure(import_module(module).measure, **options)

    return Step(name, run, needs, default, module)


def _completions(bench: Bench) -> list[Result]:
    from probes.study_behaviour import completions

    return completions(bench)


def _calibration(bench: Bench) -> Result:
    from probes import calibration

    given = decide(bench.finished("refusal"))  # judges are asked when all cells are measured
    refusals = refusals_from(given, bench.asked.harmful)
    return bench.measure(calibration.measure, refusals=refusals, outcome=counted_by(given))


def _neurons(bench: Bench, **options: Any) -> list[Result]:
    from probes import neurons
    from probes.neuron_weights import safety_units
    from probes.units import NeuronResult

    measured = bench.measure(neurons.measure, **options)
    assert isinstance(measured, NeuronResult)
    baseline, cell = bench.checkpoints
    return [measured, safety_units(measured, baseline, {bench.cell: cell})]


def _quality(
    bench: Bench,
    *,
    references: Path | None = None,
    text: Path | None = None,
    encoder: str | None = None,
    max_new_tokens: int = 64,
) -> Result:
    from probes import quality
    from probes.text_metrics import load_encoder

    limit = bench.study.prompts.limit or quality.TASK_SIZE
    task = quality.organism_task(limit) if references is None else quality.read_task(references)
    return quality.measure(
        bench.baseline,
        {bench.cell: bench.open_cell()},
        task,
        text=None if text is None else read_text(text),
        encoder=None if encoder is None else load_encoder(encoder),
        template=bench.asked.template,
        force=bench.model.forced,
        max_new_tokens=max_new_tokens,
    )


STEPS: Sequence[Step] = (
    Step("completions", _completions),
    probe("entropy"),
    probe("direction"),
    Step("calibration", _calibration, needs=("completions",)),
    Step("neurons", _neurons, probe="probes.neurons"),
    Step("quality", _quality),
    probe("margin"),
    probe("geometry"),
    probe("attribution", default=False),
    probe("causal", default=False),
)
"""In the order in which they run on a cell."""
BY_NAME: Mapping[str, Step] = {step.name: step for step in STEPS}
ALWAYS = "completions"
"""The step that every study has: the matrix is about refusals."""
PROBES = tuple(step.name for step in STEPS if step.name != ALWAYS)


def chosen_steps(study: Study) -> list[Step]:
    """The steps of a study, with those that they need, in the order in which they run."""
    named = study.probes.get("run") or [step.name for step in STEPS if step.default]
    wanted = {ALWAYS, *named}
    for step in reversed(STEPS):
        wanted |= set(step.needs) if step.name in wanted else set()
    return [step for step in STEPS if step.name in wanted]


def options_of(study: Study, step: Step) -> dict[str, Any]:
    """What the study's file says of a step, converted to the types of the probe's parameters; paths found."""
    from pydantic import TypeAdapter

    given = study.probes.get(step.name, {})
    types = {name: TypeAdapter(step.options[name].annotation) for name in given}
    converted = {name: types[name].validate_python(value) for name, value in given.items()}
    return {
        name: Path(study.path(str(value))) if isinstance(value, Path) else value for name, value in converted.items()
    }
