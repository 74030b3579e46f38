"""A baseline, its cells and the prompts that all of them read: what every probe needs before it can measure."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from interp.chat import AnyTemplate, ChatTemplate, render
from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError, Unmeasurable
from interp.model import HookedModel
from interp.opening import load
from interp.pairs.baseline import baseline_warnings
from interp.pairs.weight_error import check_pair
from interp.passes import Pass
from interp.progress import track
from interp.quantize.cells import text_hash
from probes.harness.names import BASELINE
from probes.harness.pieces import determined_by
from probes.harness.prompts import PromptSet
from probes.harness.results import Result, versions
from probes.harness.silence import looked_at, require_speech
from probes.harness.thought_check import LOOKED_AT, require_answer

Observation = TypeVar("Observation")
Reads = Callable[[HookedModel, Mapping[str, list[str]]], Iterable[Pass]]
"""A model and the rendered prompts of each side → the passes that a probe will take of this model."""


def _nothing(model: HookedModel, texts: Mapping[str, list[str]]) -> Iterable[Pass]:
    return ()


if TYPE_CHECKING:
    Models = Mapping[str, HookedModel]
    """Models by name; `Cells` opens them one at a time."""
else:  # beartype would look at an item of a mapping, and so open a model
    Models = Mapping


class Cells(Models):
    """Quantized checkpoints by name, opened as models one at a time: each when it is asked for, and not kept.

    Args:
        paths: name → directory, .gguf file or hub id.
        baseline: gives the dtype, the tokenizer and, to a GGUF, the config; cells are streamed if it is.
        device: where the models are put.

    Raises:
        InputError: a path is not a checkpoint.

    Example:
        >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
        >>> entropy.measure(baseline, cells, builtin("harmful"), builtin("harmless"))
    """

    def __init__(self, paths: Mapping[str, str | Path], baseline: HookedModel, device: str | None = None) -> None:
        self.checkpoints = {name: open_checkpoint(path) for name, path in paths.items()}
        origin = baseline.checkpoint
        self._like = None if origin is None else origin.path
        self._dtype = baseline.hf.dtype
        self._device = device
        self._stream = baseline.streamed is not None

    def __getitem__(self, name: str) -> HookedModel:
        stored, like = self.checkpoints[name], self._like
        return load(stored, like=like, dtype=self._dtype, device=self._device, stream=self._stream)

    def __contains__(self, name: object) -> bool:
        return name in self.checkpoints  # else it would be opened to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoints)

    def __len__(self) -> int:
        return len(self.checkpoints)


@dataclass
class Comparison:
    """Checked and ready to be measured.

    Attributes:
        baseline: the unquantized model.
        cells: its quantized copies.
        texts: "harmful" and "harmless" → rendered prompts, the same for all models.
        settings: everything so far that determines a number.
        warnings: what the reader of the numbers must know.
        undefined: cells that could not be observed → why.
        started: when measuring began, by the monotonic clock.
        memory: what `of_baseline` computed, outside `probes.harness.comparison.remembering`.
        reads: the passes that will be taken of each model.
    """

    baseline: HookedModel
    cells: Models
    texts: dict[str, list[str]]
    settings: dict[str, Any]
    warnings: list[str]
    undefined: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    reads: Reads = _nothing

    def announce(self, model: HookedModel) -> None:
        """Tell a streamed model all that it will be asked for, so that it reads its weights once.

        Args:
            model: the baseline, or a cell that was opened.
        """
        if model.streamed is None:
            return
        checked = [looked_at(self.texts), *([_sample(self.texts)] if model is self.baseline else [])]
        checks = [one for texts in checked for one in model.last_tokens(texts, logits=True)]
        model.expect([*checks, *self.reads(model, self.texts)])

    def observe(self, measure: Callable[[HookedModel], Observation], what: str = "") -> dict[str, Observation]:
        """Observe every model, the baseline first; see `observe_cells`.

        Args:
            measure: called with each model.
            what: is observed, a name for `of_baseline`; "" to observe the baseline every time.

        Raises:
            Unmeasurable: the baseline computes NaN or infinity.
        """
        observed = self.of_baseline(what, lambda: measure(self.baseline)) if what else measure(self.baseline)
        return {BASELINE: observed, **self.observe_cells(measure)}

    def of_baseline(self, what: str, compute: Callable[[], Observation], **options: Any) -> Observation:
        """What the baseline shows, computed once, inside `probes.harness.comparison.remembering` for all its cells.

        Args:
            what: is computed, a name of its own for every quantity.
            compute: from the baseline, the prompts and the options alone.
            options: that determine it beside the settings of the comparison.
        """
        determined = {name: value for name, value in self.settings.items() if name != "cells"}
        key = json.dumps([determined, options], sort_keys=True, default=str)
        return remembered((what, self.baseline, key), compute, self.memory)

    def observe_cells(self, measure: Callable[[HookedModel], Observation]) -> dict[str, Observation]:
        """Observe every cell, holding one at a time. A cell that computes NaN or infinity, or says nothing, goes to
        `undefined` instead."""
        observed: dict[str, Observation] = {}
        for name in track(list(self.cells), "cells"):
            try:
                with self.pieces_of(name):
                    observed[name] = measure(self.cell(name))
            except Unmeasurable as error:
                self.undefined[name] = str(error)
        return observed

    def cell(self, name: str) -> HookedModel:
        """Open a cell.

        Raises:
            Unmeasurable: it computes NaN or infinity, or says nothing; see `probes.harness.silence`.
        """
        model = self.cells[name]
        self.announce(model)
        speech_warnings = [f"{name}: {warning}" for warning in require_speech(model, self.texts)]
        self.warnings += [warning for warning in speech_warnings if warning not in self.warnings]
        return model

    def pieces_of(self, cell: str | None, **options: Any) -> AbstractContextManager[None]:
        """Inside, what `probes.harness.pieces.kept` computes is of this cell beside this baseline, with these options.

        Args:
            cell: its name; None for what is the baseline's alone.
            options: everything that determines the pieces beside the settings of the comparison.
        """
        described = [self.settings[BASELINE], *([] if cell is None else [self.settings.get("cells", {}).get(cell)])]
        models = [model for model in described if isinstance(model, dict)]
        if len(models) < len(described):  # in memory, or not described: nothing says whether it is the same as before
            return determined_by(None)
        content = [{name: value for name, value in model.items() if name != "path"} for model in models]
        others = {name: value for name, value in self.settings.items() if name not in (BASELINE, "cells")}
        used = versions()
        deciding = {name: used[name] for name in ("quantscope", "torch", "transformers")}
        return determined_by(text_hash([json.dumps([content, others, deciding, options], sort_keys=True, default=str)]))

    def result(self, probe: str, rows: list[dict[str, Any]], **settings: Any) -> Result:
        """Rows as a result; a cell that could not be observed has one row, all undefined but for its name and reason.

        Args:
            probe: its name.
            rows: of the cells that were observed.
            settings: what determines the numbers beside the settings of the comparison.
        """
        rows = rows + [{"cell": cell, "reason": reason} for cell, reason in self.undefined.items()]
        seconds = round(time.monotonic() - self.started, 3)
        return Result(probe, _tidy(rows), self.settings | settings, list(self.warnings), seconds)


def _tidy(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table in which a column of whole numbers stays one although some rows lack it."""
    table = pd.DataFrame(rows)
    whole = [name for name in map(str, table) if {type(row.get(name)) for row in rows} <= {int, type(None)}]
    return table.astype(dict.fromkeys(whole, "Int64"))


def compare(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    *,
    template: AnyTemplate = "auto",
    force: bool = False,
    reads: Reads = _nothing,
) -> Comparison:
    """Check that all cells are quantizations of the baseline and render the prompts once for all of them.

    Args:
        baseline: the unquantized model.
        cells: its quantized copies by name.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        template: "auto", "closed-thought", "none" (raw text) or a Jinja file; see `interp.chat.template_source`.
        force: go on with cells that are no quantizations of this baseline, and record it.
        reads: the passes that will be taken of each model, which a streamed one then computes together.

    Raises:
        InputError: no cells; a cell of another model, tokenizer or dtype; a prompt set that is empty, equal to the
            other, or has a prompt that is longer than the context; a baseline that thinks before it answers.
        Unmeasurable: a baseline that computes NaN or infinity, or says nothing.

    Example:
        >>> comparison = compare(baseline, cells, builtin("harmful"), builtin("harmless"))
        >>> comparison.observe(lambda model: model.logits(comparison.texts["harmful"]))
    """
    require_models(baseline, cells)
    warnings: list[str] = []
    if not cells:
        raise InputError("There is nothing to compare with the baseline", "at least one quantized checkpoint")
    if BASELINE in cells:
        raise InputError(f"A cell is named {BASELINE!r}", "another name", "Give it one with --quantized NAME=PATH")
    for name in cells:
        warnings += [f"{name}: {warning}" for warning in _check_cell(baseline, cells, name, force)]
    return _ready(baseline, cells, harmful, harmless, template, warnings, reads, force=force)


def alone(
    baseline: HookedModel, harmful: PromptSet, harmless: PromptSet, *, template: AnyTemplate = "auto"
) -> Comparison:
    """The same without cells, for what is measured of a baseline by itself.

    Args:
        baseline: the model.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        template: as in `compare`.

    Raises:
        InputError: a prompt set that is empty, equal to the other, or has a prompt that is longer than the context; a
            model that thinks before it answers.
        Unmeasurable: a model that computes NaN or infinity, or says nothing.
    """
    require_models(baseline, {})
    warnings = [] if baseline.checkpoint is None else [f"{BASELINE}: {w}" for w in baseline.checkpoint.warnings]
    return _ready(baseline, {}, harmful, harmless, template, warnings)


def _ready(
    baseline: HookedModel,
    cells: Models,
    harmful: PromptSet,
    harmless: PromptSet,
    template: AnyTemplate,
    warnings: list[str],
    reads: Reads = _nothing,
    **options: Any,
) -> Comparison:
    texts, rendering = _render(baseline, {"harmful": harmful, "harmless": harmless}, template, warnings)
    settings = {
        "position": -1,
        "dtype": str(baseline.hf.dtype).removeprefix("torch."),
        "device": str(baseline.device),
        **options,
        **rendering,
        BASELINE: described(baseline.checkpoint),
        "cells": {name: described(_checkpoint(cells, name)) for name in cells},
    }
    comparison = Comparison(baseline, cells, texts, settings, warnings, reads=reads)
    comparison.announce(baseline)
    speech_warnings = comparison.of_baseline("speech", lambda: require_speech(baseline, texts))
    doubts = [] if baseline.checkpoint is None else baseline_warnings(baseline.checkpoint)
    comparison.warnings += [f"{BASELINE}: {warning}" for warning in (*doubts, *speech_warnings)]
    comparison.of_baseline("first token", lambda: require_answer(baseline, _sample(texts)))
    return comparison


def _sample(texts: Mapping[str, list[str]]) -> list[str]:
    """The prompts whose answers are looked at for thoughts."""
    return [text for side in texts.values() for text in side[:LOOKED_AT]]


def require_models(baseline: object, cells: object) -> None:
    """Tell who gives a probe paths, a list or one model what it takes.

    Raises:
        InputError: the baseline is no loaded model, or the cells are no mapping of loaded ones.
    """
    for what, value, expected in (
        ("baseline", baseline, HookedModel),
        ("cells", cells, Mapping),
        *((f"cell {name}", value, HookedModel) for name, value in _in_memory(cells)),
    ):
        if not isinstance(value, expected):
            verb = "are" if what == "cells" else "is"
            raise InputError(
                f"The {what} {verb} {_named(value)}",
                "a loaded model" if expected is HookedModel else "loaded models by name",
                "Call probes.measure(baseline, cells), which takes paths, lists and single cells, or open them: "
                "baseline = interp.load(path), cells = probes.Cells({name: path}, baseline)",
            )


def _in_memory(cells: object) -> Iterable[tuple[str, object]]:
    """Cells that are there already; those of `Cells` are opened one at a time."""
    return cells.items() if isinstance(cells, Mapping) and type(cells) in (dict, MappingProxyType) else ()


def _named(value: object) -> str:
    kind = type(value).__name__
    return f"a {kind}, {value!r}" if isinstance(value, (str, Path)) else f"a {kind}"


def _checkpoint(cells: Models, name: str) -> Checkpoint | None:
    return cells.checkpoints[name] if isinstance(cells, Cells) else cells[name].checkpoint


def _check_cell(baseline: HookedModel, cells: Models, name: str, force: bool) -> list[str]:
    if not isinstance(cells, Cells) and cells[name].hf.dtype != baseline.hf.dtype:
        raise InputError(
            f"The cell {name} computes in {cells[name].hf.dtype}, the baseline in {baseline.hf.dtype}",
            "one dtype for both, or the difference between dtypes is measured as quantization",
            "Load both with the same dtype",
        )
    quantized = _checkpoint(cells, name)
    if baseline.checkpoint is None or quantized is None:
        return ["made in memory, so nothing says that it is a quantization of the baseline"]
    return [*quantized.warnings, *checked(baseline.checkpoint, quantized, force)]


@lru_cache(maxsize=64)
def checked(baseline: Checkpoint, quantized: Checkpoint, force: bool) -> tuple[str, ...]:
    """`check_pair` reads every tensor of both, and several probes in a row compare the same opened checkpoints."""
    return tuple(check_pair(baseline, quantized, force=force))


def _render(
    baseline: HookedModel, sets: Mapping[str, PromptSet], template: AnyTemplate, warnings: list[str]
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    _check_sets(sets["harmful"], sets["harmless"], warnings)
    rendered = {side: render(baseline.tokenizer, prompts.instructions, template) for side, prompts in sets.items()}
    for side, rendering in rendered.items():
        try:
            baseline.token_ids(rendering.texts)
        except InputError as error:
            raise InputError(f"The {side} prompts {sets[side].name} cannot be read by the model: {error}") from error
    source = rendered["harmful"].template
    warnings += rendered["harmful"].warnings
    settings = {
        **ChatTemplate.of(template).described(),
        "template_sha256": None if source is None else hashlib.sha256(source.encode()).hexdigest(),
        "prompts": {side: {"name": s.name, "sha256": s.sha256, "n": len(s.instructions)} for side, s in sets.items()},
    }
    return {side: rendering.texts for side, rendering in rendered.items()}, settings


def _check_sets(harmful: PromptSet, harmless: PromptSet, warnings: list[str]) -> None:
    for side, prompts in (("harmful", harmful), ("harmless", harmless)):
        if not prompts.instructions:
            raise InputError(f"The {side} prompt set {prompts.name} is empty", "at least one prompt on each side")
    shared = set(harmful.instructions) & set(harmless.instructions)
    if shared:
        raise InputError(
            f"{len(shared)} prompts are in both the harmful set {harmful.name} and the harmless set {harmless.name}, "
            f"such as {min(shared)[:60]!r}",
            "two sets without a common prompt, since the probes measure their contrast",
            "Take them out of one set",
        )
    if len(harmful.instructions) != len(harmless.instructions):
        warnings.append(
            f"{len(harmful.instructions)} harmful but {len(harmless.instructions)} harmless prompts; "
            "the study has as many of each"
        )


def described(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """What identifies a checkpoint in a result; None for a model that was made in memory."""
    if checkpoint is None:
        return None
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.fingerprint(),
        "format": checkpoint.format,
        "quantization": checkpoint.quantization,
    }


Remembered = TypeVar("Remembered")

_memory: ContextVar[dict[Hashable, Any] | None] = ContextVar("memory", default=None)


@contextmanager
def remembering(memory: dict[Hashable, Any] | None = None) -> Iterator[None]:
    """Keep what `remembered` computes until the end of the block; inside another block, until the end of this one.

    Args:
        memory: where it is kept, to go on with it in a later block.
    """
    token = _memory.set({} if memory is None else memory)
    try:
        yield
    finally:
        _memory.reset(token)


def remembered(
    key: Hashable, compute: Callable[[], Remembered], outside: dict[Hashable, Any] | None = None
) -> Remembered:
    """What `compute` returns, or returned for the same key in the same block.

    Args:
        key: everything that determines the value.
        compute: called without arguments.
        outside: where it is kept outside any block; None to compute it anew there.
    """
    memory = outside if (block := _memory.get()) is None else block
    if memory is None:
        return compute()
    if key not in memory:
        memory[key] = compute()
    return memory[key]
