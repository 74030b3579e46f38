"""Running a study: whatever is missing or stale, each checkpoint opened once, one failing cell without the others.

The baseline is opened, then one cell at a time; all steps look at a cell while it is open, and each is written when it
is finished. An interruption loses the step that was under way. Other workers may be at the same run: each model is
claimed by the one that measures it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from interp.checkpoint import open_checkpoint
from interp.cli import Requeue, log
from interp.errors import InputError
from interp.inspect.wording import sized
from interp.model import HookedModel
from interp.opening import load, usable_device, usual_dtype
from interp.progress import Lines, Stages, line
from interp.streaming.memory import SHARE, Plan, free_memory, plan
from interp.threads import fit_threads
from probes.harness.comparison import Cells, remembering
from probes.harness.names import BASELINE
from probes.study.checkpoints import StageReport, before_alignment, located, open_cell, prepare
from probes.study.keys import Keys
from probes.study.schema import Model, Study
from probes.study.state import PartStatus, Record, RunFolder, StudyPart, parts_of, reason_of, records
from probes.study.step import Asked, StepContext
from probes.study.steps import BY_NAME, options_of
from probes.study.workers import Worker, holder

PATIENCE = 1.0
"""Seconds between two looks at a model that another worker measures."""


class Bars:
    """What is being prepared or measured, how much is left, and how long it will take; in a notebook, a line."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=log, disable=not log.is_terminal)
        self._parts: TaskID | None = None
        self._done, self._total, self._what = 0, 0, ""
        self._say: Callable[[str], object] = lambda text: None
        self._lines: Lines | None = None
        self._open = ExitStack()

    @contextmanager
    def parts(self, total: int) -> Iterator[None]:
        """Show a bar of so many parts."""
        self._total = total
        with self._open:
            if log.is_jupyter:
                self._say = self._open.enter_context(line())
            elif log.is_terminal:
                self._open.enter_context(self.bars)
                self._parts = self.bars.add_task("measuring", total=total)
            yield

    def working_on(self, what: str) -> None:
        """Say what is being measured."""
        same_cell = what.rpartition(" · ")[0] == self._what.rpartition(" · ")[0]
        self._what = what
        self._say_parts()
        if self._parts is not None:
            self.bars.update(self._parts, description=what)
        elif self._lines is not None:
            self._lines.description = what
            if not same_cell:
                self._lines.say()
        elif not log.is_jupyter:
            self._lines = self._open.enter_context(Lines(what, self._total, done=self._done))

    def finished(self, count: int = 1) -> None:
        """Count finished (or failed) parts."""
        self._done += count
        self._say_parts()
        if self._parts is not None:
            self.bars.advance(self._parts, count)
        elif self._lines is not None:
            self._lines.show(self._done)

    @contextmanager
    def preparing(self, name: str) -> Iterator[StageReport]:
        """Yields what shows training and quantizing, as `probes.study.checkpoints.prepare` reports it."""
        if log.is_jupyter or self._parts is not None:
            self.working_on(f"{name} · preparing")
            yield self._preparing(name)
            return
        self._open.close()
        self._lines = None
        with Stages() as stages:
            yield lambda what, done, total: stages.show(f"{name}: {what}", done, total)

    def _preparing(self, name: str) -> StageReport:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: float, total: float) -> None:
            self._say(f"{name}: {what}: {done / total:.0%}")
            if self._parts is None:
                return
            if what not in tasks:
                tasks[what] = self.bars.add_task(f"{name}: {what}", total=total)
            self.bars.update(tasks[what], completed=done)

        return report

    def _say_parts(self) -> None:
        self._say(f"{self._what}: {self._done} of {self._total} parts are measured")


@dataclass(frozen=True)
class Work:
    """What a worker does.

    Attributes:
        study: all settings.
        folder: of the run.
        worker: itself.
        models: the names of its models.
        failed_only: measure only what failed before.
        stop: whether it is asked to end after the part under way.
        patient: wait for other workers that measure its models, in case they die.
    """

    study: Study
    folder: RunFolder
    worker: Worker
    models: Sequence[str]
    failed_only: bool = False
    stop: Callable[[], bool] = lambda: False
    patient: bool = False

    def todo(self, known: Mapping[StudyPart, Record]) -> dict[StudyPart, PartStatus]:
        """The parts that it is to measure, and what they are."""
        wanted = [PartStatus.FAILED] if self.failed_only else [s for s in PartStatus if s is not PartStatus.DONE]
        own = {part: record.status for part, record in known.items() if part.model in self.models}
        return {part: status for part, status in own.items() if status in wanted}


class Measuring:
    """One model being measured.

    Args:
        work: whose model it is.
        asked: the study's prompts.
        model: the model.
        places: baseline and cells → where they are, or why they are not.
        bars: shows what is going on.
    """

    def __init__(
        self, work: Work, asked: Asked, model: Model, places: Mapping[str, Path | InputError], bars: Bars
    ) -> None:
        self.work, self.study, self.folder = work, work.study, work.folder
        self.asked, self.model, self.places, self.bars = asked, model, places, bars
        self.keys = Keys(self.study, asked)
        self.parts = [part for part in parts_of(self.study) if part.model == model.name]

    @cached_property
    def baseline(self) -> HookedModel:
        """The baseline, opened when the first part needs it."""
        dtype = None if self.model.dtype is None else getattr(torch, self.model.dtype)
        if self.streaming:
            log.print(f"{self.model.name}: {self.memory}", markup=False, highlight=False, soft_wrap=True)
        baseline = load(self.path(BASELINE), dtype=dtype, device=self.model.device, stream=self.streaming)
        fit_threads(baseline)
        return baseline

    @cached_property
    def before(self) -> HookedModel:
        """The model from before alignment, opened when the first part needs it, in the dtype of the baseline.

        Raises:
            InputError: the study does not say which it is; a third model does not fit beside the pair.
        """
        path = before_alignment(self.study, self.model, self.path(BASELINE))
        free, size = free_memory(usable_device(self.model.device)), self.memory.pair // 2
        if free is not None and size > SHARE * free:
            raise InputError(
                f"The model from before alignment takes {sized(size)} beside the pair, and {sized(free)} are free",
                "as much free memory",
                "Give the model a narrower dtype, or leave reversion out",
            )
        return load(path, like=self.path(BASELINE), dtype=self.baseline.hf.dtype, device=self.model.device)

    @cached_property
    def memory(self) -> Plan:
        """What the pair takes in memory, and whether it is streamed; reads headers only."""
        checkpoint, device = open_checkpoint(self.path(BASELINE)), usable_device(self.model.device)
        dtype = usual_dtype(checkpoint, device) if self.model.dtype is None else getattr(torch, self.model.dtype)
        return plan(checkpoint, dtype, device, None if self.model.stream == "auto" else self.model.stream)

    @property
    def streaming(self) -> bool:
        """Whether the models are streamed."""
        return self.model.stream is not False and self.memory.stream

    def path(self, name: str) -> Path:
        """Where the baseline or a cell is.

        Raises:
            InputError: why it is not there.
        """
        place = self.places[name]
        if isinstance(place, InputError):
            raise place
        return place

    def records(self) -> dict[StudyPart, Record]:
        """The state of every part."""
        return {part: self.folder.record(part, self.key(part)) for part in self.parts}

    def key(self, part: StudyPart) -> str:
        """The hash of what determines a part."""
        baseline, cell = (self.places[name] for name in (BASELINE, part.cell))
        if isinstance(baseline, InputError) or isinstance(cell, InputError):
            return ""
        return self.keys.key(self.model, BY_NAME[part.step], part.cell, baseline, cell)

    def todo(self, before: Mapping[StudyPart, PartStatus]) -> list[StudyPart]:
        """What is left of that which was to be measured; what failed since, in another worker, is not tried again."""
        now = self.work.todo(self.records())
        failed_since = {part for part, status in now.items() if status is PartStatus.FAILED is not before.get(part)}
        return [part for part in before if part in now and part not in failed_since]

    def measure(self, parts: Sequence[StudyPart], over: Callable[[], bool]) -> Iterator[str]:
        """Measure parts, one cell after the other, and yield the name of each when its steps are over.

        Args:
            parts: of this model.
            over: asked before each part whether to end.
        """
        with remembering():
            for cell in dict.fromkeys(part.cell for part in parts):
                self._measure_cell([part for part in parts if part.cell == cell], over)
                yield cell

    def _measure_cell(self, parts: Sequence[StudyPart], over: Callable[[], bool]) -> None:
        opened = _Once(lambda: self._open(parts[0].cell))
        for part in parts:
            if over():
                return
            self.bars.working_on(" · ".join(part))
            try:
                self._measure_part(part, opened)
            except Exception as error:  # whatever goes wrong with one part must not stop the others
                self._fail(part, error)
            self.bars.finished()
            self.work.worker.counted(failed=part in self.folder.failures)

    def _measure_part(self, part: StudyPart, opened: _Once) -> None:
        step = BY_NAME[part.step]
        if lacking := [name for name in step.needs if not self._is_done(part._replace(step=name))]:
            raise InputError(f"{part.step} needs {', '.join(lacking)}, which failed")
        started = time.monotonic()
        checkpoints = open_checkpoint(self.path(BASELINE)), open_cell(self.model, part.cell, self.path(part.cell))
        context = StepContext(
            self.study,
            self.asked,
            part.cell,
            lambda: self.baseline,
            opened,
            self.model,
            self.folder.path / self.model.name,
            lambda name: self._finished(part.cell, name),
            self._of_baseline,
            checkpoints,
            lambda: self.before,
            self.streaming,
            self._whole,
        )
        results = step.results(context, options_of(self.study, step))
        self.folder.write(part, self.key(part), results, time.monotonic() - started)

    def _open(self, cell: str) -> HookedModel:
        return Cells({cell: self.path(cell)}, self.baseline, self.model.device)[cell]

    def _whole(self, name: str) -> HookedModel:
        """A model with all weights in memory, which nobody here holds.

        Raises:
            InputError: it alone does not fit.
        """
        if self.memory.free is not None and self.memory.pair / 2 > self.memory.free:
            raise InputError(
                f"To answer, {self.model.name} needs all of its weights in memory ({sized(self.memory.pair // 2)}), of "
                f"which {sized(self.memory.free)} are free",
                do='Give a narrower dtype, or let another engine answer: [behaviour] runner = "inspect" with engine '
                '"llama.cpp" or "vllm"',
            )
        like = None if name == BASELINE else self.path(BASELINE)
        return load(self.path(name), like=like, dtype=self.memory.dtype, device=self.model.device)

    def _fail(self, part: StudyPart, error: Exception) -> None:
        reason = reason_of(error)
        self.folder.failures[part] = (self.key(part), reason)
        log.print(f"failed: {' · '.join(part)}: {reason}", style="red", markup=False, highlight=False)
        if not isinstance(error, InputError):
            log.print("".join(traceback.format_exception(error)), markup=False, highlight=False)

    def _is_done(self, part: StudyPart) -> bool:
        return self.folder.record(part, self.key(part)).status is PartStatus.DONE

    def _finished(self, cell: str, name: str) -> pd.DataFrame:
        parts = [part for part in self.parts if part.cell == cell and self._is_done(part)]
        return next(r.table for part in parts for r in self.folder.results(part) if r.probe == name)

    def _of_baseline(self, name: str) -> pd.DataFrame:
        for part in filter(self._is_done, self.parts):
            for result in self.folder.results(part):
                if result.probe == name:
                    return result.table[result.table["cell"] == BASELINE]
        return pd.DataFrame()


class _Once:
    """Opens a model when it is first asked for; what went wrong then goes wrong again without another try."""

    def __init__(self, opening: Callable[[], HookedModel]) -> None:
        self._opening = opening
        self._model: HookedModel | None = None
        self._error: Exception | None = None

    def __call__(self) -> HookedModel:
        if self._error is not None:
            raise self._error
        if self._model is None:
            try:
                self._model = self._opening()
            except Exception as error:
                self._error = error
                raise
        return self._model


def measure_all(work: Work) -> dict[StudyPart, Record]:
    """Measure what is missing or stale of a worker's models, and return the state of every part of the study.

    A model that another worker has claimed is left to it; where that one turns out to be dead, it is measured here.

    Raises:
        Requeue: it was asked to stop.
    """
    asked = Asked.of(work.study)
    places = {model.name: located(work.study, model) for model in work.study.models}
    todo = work.todo(work.folder.begin(work.study, places))
    models = [model for model in work.study.models if model.name in {part.model for part in todo}]
    bars = Bars()
    with bars.parts(len(todo)):
        while models:
            held = [model for model in models if not _measure_model(work, asked, model, todo, bars)]
            models = [model for model in held if holder(work.folder.path, model.name) is None or _waited(work)]
    work.folder.reload()
    return records(work.study, work.folder, {model.name: located(work.study, model) for model in work.study.models})


def _waited(work: Work) -> bool:
    """Whether a patient worker waits for another one; it has done so for a while then."""
    if work.stop():
        raise Requeue
    if work.patient:
        time.sleep(PATIENCE)
    return work.patient


def _measure_model(work: Work, asked: Asked, model: Model, todo: Mapping[StudyPart, PartStatus], bars: Bars) -> bool:
    """Measure a model unless another worker does; whether it was this one's turn."""
    with work.worker.measuring(model.name) as claim:
        if claim is None:
            return False
        work.folder.reload()
        measuring = Measuring(work, asked, model, _prepared(work.study, model, bars), bars)
        parts = measuring.todo({part: status for part, status in todo.items() if part.model == model.name})
        for _ in measuring.measure(parts, lambda: work.stop() or claim.lost):
            work.folder.write_state(work.study, measuring.records())
            if work.stop():
                raise Requeue
        return True


def _prepared(study: Study, model: Model, bars: Bars) -> Mapping[str, Path | InputError]:
    """Where everything is; a baseline that cannot be had keeps all cells from being measured."""
    try:
        with bars.preparing(model.name) as report:
            return prepare(study, model, report)
    except InputError as error:
        return dict.fromkeys((BASELINE, *model.cell_names), error)
