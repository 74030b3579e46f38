"""The steps of a study: what is measured on a cell while it is open. A new probe is one more line in `STEPS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from interp.documents import read_text
from probes.calibration.probe import refusals_from
from probes.fragility.settings import DRAWS as FRAGILITY_DRAWS
from probes.harness.results import Result
from probes.labels.refused import counted_by, decide
from probes.quality.settings import MAX_NEW_TOKENS
from probes.reversion.settings import DRAWS
from probes.study.schema import Study
from probes.study.step import Step, StepContext, probe


def _completions(context: StepContext) -> list[Result]:
    from probes.study.answers import completions

    return completions(context)


def _calibration(context: StepContext) -> Result:
    from probes.calibration import probe as calibration

    outcomes = decide(context.finished("refusal"))  # judges are asked when all cells are measured
    refusals = refusals_from(outcomes, context.asked.harmful)
    return context.measure(calibration.measure, refusals=refusals, outcome=counted_by(outcomes))


def _neurons(context: StepContext, **options: Any) -> list[Result]:
    from probes.neurons import probe as neurons
    from probes.neurons.units import NeuronResult
    from probes.neurons.weight_errors import safety_units

    measured = context.measure(neurons.measure, **options)
    assert isinstance(measured, NeuronResult)
    baseline, cell = context.checkpoints
    return [measured, safety_units(measured, baseline, {context.cell: cell})]


def _quality(
    context: StepContext,
    *,
    references: Path | None = None,
    text: Path | None = None,
    encoder: str | None = None,
    max_new_tokens: Annotated[int, Field(ge=1)] = MAX_NEW_TOKENS,
) -> Result:
    from probes.quality import probe as quality
    from probes.quality.text_metrics import load_encoder

    limit = context.study.prompts.limit or quality.TASK_SIZE
    own = quality.default_task(context.baseline, context.asked.harmless, limit)
    task = own if references is None else quality.read_task(references)
    return quality.measure(
        context.baseline,
        {context.cell: context.open_cell()},
        task,
        text=None if text is None else read_text(text),
        encoder=None if encoder is None else load_encoder(encoder),
        template=context.asked.template,
        force=context.model.forced,
        max_new_tokens=max_new_tokens,
    )


def _reversion(
    context: StepContext, *, draws: Annotated[int, Field(ge=1)] = DRAWS, seed: Annotated[int, Field(ge=0)] = 0
) -> Result:
    from probes.reversion import probe as reversion

    return context.measure(reversion.measure, before=context.before, draws=draws, seed=seed)


def _coverage(context: StepContext) -> Result:
    from interp.quantize.calibration import calibration_of
    from probes.coverage import probe as coverage

    baseline, _ = context.checkpoints
    file = context.model.calibration
    given = None if file is None else Path(context.study.path(file))
    texts = calibration_of(baseline.path, given, context.baseline.tokenizer)
    return context.measure(coverage.measure, calibration=texts)


def _fragility(
    context: StepContext, *, draws: Annotated[int, Field(ge=1)] = FRAGILITY_DRAWS, seed: Annotated[int, Field(ge=0)] = 0
) -> Result:
    """The baseline rounded by chance to whole bits as many as the cell has, in groups as long as its format's."""
    from probes.attribution.cell import group_size_of
    from probes.fragility import probe as fragility

    _, cell = context.checkpoints
    measured = fragility.measure(
        context.baseline,
        context.asked.harmful,
        context.asked.harmless,
        bits=[min(int(cell.quantization.get("bits") or cell.bits_per_weight()), fragility.MOST_BITS)],
        group=group_size_of(cell),
        draws=draws,
        seed=seed,
        template=context.asked.template,
        batch_size=context.asked.batch_size,
    )
    table = measured.table.assign(cell=context.cell)
    return Result("fragility", table, measured.settings, measured.warnings)


STEPS: Sequence[Step] = (
    Step("completions", _completions, streams=True),
    probe("entropy", streams=True),
    probe("direction", streams=True),
    Step("calibration", _calibration, needs=("completions",), streams=True),
    Step("neurons", _neurons, probe="probes.neurons", streams=True),
    Step("quality", _quality),
    probe("margin", streams=True),
    probe("geometry", streams=True),
    probe("attribution", default=False, streams=True),
    probe("causal", default=False),
    probe("depth", default=False),
    Step("reversion", _reversion, default=False),
    Step("coverage", _coverage, default=False),
    Step("fragility", _fragility, default=False),
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

    options = study.probes.get(step.name, {})
    types = {name: TypeAdapter(step.options[name].annotation) for name in options}
    converted = {name: types[name].validate_python(value) for name, value in options.items()}
    return {
        name: Path(study.path(str(value))) if isinstance(value, Path) else value for name, value in converted.items()
    }
