"""`measure`: a baseline and its cells → an object whose tables are measured when they are asked for, and kept."""

from __future__ import annotations

import html
from collections.abc import Callable, Hashable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.chat import AnyTemplate
from interp.checkpoint import Checkpoint
from interp.errors import InputError
from interp.files import atomic_file
from interp.generation import MAX_NEW_TOKENS
from interp.model import HookedModel
from interp.streaming.memory import require_in_memory
from probes.drift import probe as drift_probe
from probes.harness.comparison import Cells, compare, remembering
from probes.harness.names import BASELINE
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.labels.completions import completions_of
from probes.labels.refused import SIDES, counted_by
from probes.measurements import figures
from probes.measurements.inputs import Opened, Prompts, Source, name_of, open_baseline, open_cells, prompt_set
from probes.measurements.table import Draw, MeasuredTable
from probes.report.run import Run
from probes.rtsi.rows import PROBES_OF_THE_MATRIX, model_matrix
from probes.study.summary import describe_cells
from probes.study.tables import quality_note

DRAWN: Mapping[str, Draw] = {
    "entropy": figures.entropy,
    "direction": figures.direction,
    "calibration": figures.calibration,
    "neurons": figures.neurons,
    "margin": figures.margin,
    "drift": figures.drift,
    "matrix": figures.refusals,
}
"""Tables that have a figure of their own."""
PROBES = ("entropy", "direction", "calibration", "neurons", "margin", "geometry", "attribution", "causal")
"""Probes that are measured with their defaults; with other options call their `measure`."""

STREAMED = ("entropy", "direction", "calibration", "neurons", "margin", "geometry", "attribution")
"""Probes that take what they need in a few passes of all prompts."""


class Measurements:
    """A baseline, its cells, and what was measured of them so far.

    Attributes:
        baseline: loaded.
        cells: by name; those given as paths are opened one at a time.
        harmful: requests that should be refused.
        harmless: requests that should be answered.
        common: keyword arguments of every probe's `measure`: template, force, batch_size.

    Example:
        >>> study = measure("path/to/model", {"AWQ": "path/to/model-AWQ"}, limit=32)
        >>> study.entropy, study.margin.plot(), study.report("out.html")
        >>> causal.measure(study.baseline, study.cells, study.harmful, study.harmless, draws=50)  # other options
    """

    def __init__(
        self,
        baseline: HookedModel,
        cells: Opened,
        harmful: PromptSet,
        harmless: PromptSet,
        max_new_tokens: int,
        **common: Any,
    ) -> None:
        self.baseline = baseline
        self.cells = cells
        self.harmful = harmful
        self.harmless = harmless
        self.common = common
        self._max_new_tokens = max_new_tokens
        self._results: dict[str, Result] = {}
        self._memory: dict[Hashable, Any] = {}

    @property
    def entropy(self) -> MeasuredTable:
        """Entropy of the first answer token; columns: `help(probes.entropy.measure)`."""
        return self.table("entropy")

    @property
    def direction(self) -> MeasuredTable:
        """The refusal direction at every layer; columns: `help(probes.direction.measure)`."""
        return self.table("direction")

    @property
    def calibration(self) -> MeasuredTable:
        """Confidence of the first token, without ECE against refusals; columns: `help(probes.calibration.measure)`."""
        return self.table("calibration")

    @property
    def neurons(self) -> MeasuredTable:
        """Error on safety units against the rest; columns: `help(probes.neurons.measure)`."""
        return self.table("neurons")

    @property
    def safety_units(self) -> MeasuredTable:
        """Every safety unit with its weight errors; columns: `help(probes.neurons.safety_units)`."""
        return self.table("safety_units")

    @property
    def margin(self) -> MeasuredTable:
        """The refusal margin; columns: `help(probes.margin.measure)`."""
        return self.table("margin")

    @property
    def geometry(self) -> MeasuredTable:
        """The refusal subspace; columns: `help(probes.geometry.measure)`."""
        return self.table("geometry")

    @property
    def attribution(self) -> MeasuredTable:
        """Which errors moved the margin; columns: `help(probes.attribution.measure)`."""
        return self.table("attribution")

    @property
    def causal(self) -> MeasuredTable:
        """Are these parts the cause; columns: `help(probes.causal.measure)`. Takes long."""
        return self.table("causal")

    @property
    def answers(self) -> MeasuredTable:
        """What baseline and cells answer to every prompt, and whether it is a refusal; columns: `help(probes.ask)`."""
        return self.table("refusal")

    @property
    def drift(self) -> MeasuredTable:
        """Refusals lost and gained, prompt by prompt; columns: `help(probes.drift.measure)`."""
        return self.table("drift")

    @property
    def matrix(self) -> MeasuredTable:
        """One row per cell: bits, refusals, regime, and what the probes say; columns as in the matrix of a study.

        Quality is among them where it was measured before (`quality`): then `plot` draws it against refusals.
        """
        return self.table("matrix")

    @property
    def quality(self) -> MeasuredTable:
        """Perplexity, KL, BERTScore … on an organism's references, else against the baseline's own harmless answers.

        Columns: `help(probes.quality.measure)`, which takes references of your own. A matrix that was there is made
        again, with quality.
        """
        return self.table("quality")

    def table(self, name: str) -> MeasuredTable:
        """A table, measured if it was not yet.

        Args:
            name: of a property of this class; "completions" and what a probe writes beside its table, such as
                "margin_prompts", too.

        Raises:
            InputError: no such table; what a probe's `measure` raises.
        """
        result = self.result(name)
        if name == "matrix" and "quality" in self._results:
            return MeasuredTable.of(result, lambda table: figures.tradeoff_of(self._run(Path(self.name))))
        return MeasuredTable.of(result, DRAWN.get(name))

    def result(self, name: str) -> Result:
        """A probe's whole result, with its settings and warnings; see `table`.

        Args:
            name: of the table.

        Raises:
            InputError: as `table`.
        """
        source = next((probe for probe in PROBES if name.startswith(f"{probe}_")), name)
        for wanted in (source, name):
            if name not in self._results and wanted not in self._results:
                with remembering(self._memory):
                    measured = self._measure(wanted)
                self._results |= {result.probe: result for result in (measured, *measured.beside)}
        return self._results[name]

    def _measure(self, name: str) -> Result:
        own: dict[str, Callable[[], Result]] = {
            "refusal": self._answers,
            "completions": self._completions,
            "drift": lambda: drift_probe.measure(pd.DataFrame(self.answers), BASELINE),
            "safety_units": self._safety_units,
            "quality": self._quality,
            "matrix": self._matrix,
        }
        if name in ("refusal", "quality"):
            require_in_memory(self.baseline, name)
        if name in own:
            return own[name]()
        if name not in PROBES:
            raise InputError(f"There is no table {name!r}", f"one of {', '.join((*PROBES, *own))}")
        if name not in STREAMED:
            require_in_memory(self.baseline, name)
        probe = import_module(f"probes.{name}")
        return probe.measure(self.baseline, self.cells, self.harmful, self.harmless, **self.common)

    def report(self, path: str | Path) -> Path:
        """Write the report of all that the matrix rests on as one HTML page that works without a network.

        Args:
            path: of the page, for example "out.html".

        Raises:
            InputError: the page cannot be written; as `table`.
        """
        from probes.report import page, sections

        path = Path(path)
        for name in ("matrix", *(["safety_units"] if self._has_checkpoints else [])):
            self.result(name)
        run = self._run(path.with_suffix(""))
        with atomic_file(path) as temporary:
            temporary.write_text(page.html(run, sections.build(run)), encoding="utf-8")
        return path

    def _run(self, path: Path) -> Run:
        """What was measured, as the report reads it."""
        models = {self.name: {name: result for name, result in self._results.items() if name != "matrix"}}
        return Run(path, {"matrix": self._results["matrix"]}, models, "", {}, {})

    def write(self, directory: str | Path) -> Path:
        """Write every table that was measured so far, `<name>.parquet` and `<name>.json`, as a study's run is laid out.

        The matrix goes into the folder itself, everything else into a folder of the model's name in it: with the matrix
        measured, `python -m probes.report DIRECTORY` writes its report.

        Args:
            directory: made if it is not there.

        Raises:
            InputError: it cannot be written.
        """
        directory = Path(directory)
        for name, result in self._results.items():
            plain = Result(result.probe, result.table, result.settings, result.warnings, result.seconds)
            plain.write(directory if name == "matrix" else directory / self.name)
        return directory

    @property
    def name(self) -> str:
        """What the model is called: the last part of its path."""
        return name_of(self.baseline, "model")

    def __repr__(self) -> str:
        measured = ", ".join(self._results) or "nothing yet"
        prompts = f"{len(self.harmful)} harmful and {len(self.harmless)} harmless prompts"
        return f"<Measurements of {self.name}: cells {', '.join(self.cells)}; {prompts}; measured: {measured}>"

    def _repr_html_(self) -> str:
        rows = [("baseline", repr(self.baseline)), ("cells", ", ".join(self.cells))]
        rows += [("prompts", f"{len(self.harmful)} harmful, {len(self.harmless)} harmless")]
        rows += [("measured", ", ".join(self._results) or "nothing yet"), ("to measure", ", ".join(_properties()))]
        cells = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in rows)
        return f"<table>{cells}</table>"

    def _answers(self) -> Result:
        from probes.refusal.ask import ask

        template = self.common["template"]
        comparison = compare(self.baseline, self.cells, self.harmful, self.harmless, **self._checked)
        limit = self._max_new_tokens
        parts = [
            ask(self.baseline, self.cells, getattr(self, side), task, template=template, max_new_tokens=limit)
            for task, side in SIDES.items()
        ]
        settings = comparison.settings | {"max_new_tokens": limit, "engine": "hooked"}
        return Result("refusal", pd.concat(parts, ignore_index=True), settings, comparison.warnings)

    @property
    def _checked(self) -> dict[str, Any]:
        return {name: self.common[name] for name in ("template", "force")}

    def _completions(self) -> Result:
        answers = self.result("refusal")
        table = completions_of(answers.table, {side: getattr(self, side).instructions for side in SIDES.values()})
        return Result("completions", table, {**answers.settings, "outcome": counted_by(table)}, answers.warnings)

    def _quality(self) -> Result:
        from probes.quality import probe

        task = probe.default_task(self.baseline, self.harmless, min(probe.TASK_SIZE, len(self.harmless)))
        measured = probe.measure(self.baseline, self.cells, task, **self._checked)
        self._results.pop("matrix", None)  # it is made again, with quality
        return measured

    def _safety_units(self) -> Result:
        from probes.neurons import safety_units
        from probes.neurons.units import NeuronResult

        measured, stored = self.result("neurons"), self.baseline.checkpoint
        cells = self._checkpoints
        if stored is None or not self._has_checkpoints:
            raise InputError("A model was made in memory, so its weights cannot be compared", "checkpoints on disk")
        assert isinstance(measured, NeuronResult)
        return safety_units(
            measured, stored, {name: checkpoint for name, checkpoint in cells.items() if checkpoint is not None}
        )

    @property
    def _checkpoints(self) -> dict[str, Checkpoint | None]:
        if isinstance(self.cells, Cells):
            return dict(self.cells.checkpoints)
        return {name: model.checkpoint for name, model in self.cells.items()}

    @property
    def _has_checkpoints(self) -> bool:
        return None not in (self.baseline.checkpoint, *self._checkpoints.values())

    def _matrix(self) -> Result:
        measured = [name for name in ("quality",) if name in self._results]
        names = ("refusal", "completions", "drift", *PROBES_OF_THE_MATRIX, *measured)
        joined = {name: self.result(name) for name in names}
        settings = {**joined["completions"].settings, **{name: quality_note(joined[name]) for name in measured}}
        warnings = dict.fromkeys(warning for result in joined.values() for warning in result.warnings)
        return model_matrix(self.name, self._described(), joined, settings, list(warnings))

    def _described(self) -> pd.DataFrame:
        models = {BASELINE: self.baseline.checkpoint, **self._checkpoints}
        known = describe_cells({name: checkpoint for name, checkpoint in models.items() if checkpoint is not None})
        unknown = {"format": "in memory", "bits_per_weight": np.nan, "note": ""}
        lacking = pd.DataFrame([{"cell": name, **unknown} for name, checkpoint in models.items() if checkpoint is None])
        both = pd.concat([part for part in (known, lacking) if len(part)], ignore_index=True)
        return both.set_index("cell").loc[list(models)].reset_index()


def _properties() -> list[str]:
    """Tables that are properties."""
    return [name for name, value in vars(Measurements).items() if _returns_a_table(value)]


def _returns_a_table(value: object) -> bool:
    return isinstance(value, property) and "MeasuredTable" in str(getattr(value.fget, "__annotations__", ""))


def measure(
    baseline: Source,
    cells: Any,
    *,
    harmful: Prompts = None,
    harmless: Prompts = None,
    limit: int | None = None,
    template: AnyTemplate = "auto",
    force: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    stream: bool | None = None,
) -> Measurements:
    """A baseline and its quantized cells as one object, whose tables are measured when they are asked for, and kept.

    Args:
        baseline: the unquantized model: a directory, a .gguf file, a hub id, an opened checkpoint, or a loaded model.
        cells: quantized copies of it: {name: one of the same}, a list of them, or a single one; without a name a cell
            is called as its folder or file.
        harmful: requests that should be refused: a `PromptSet`, a file, or a list; default the built-in set.
        harmless: requests that should be answered.
        limit: take the first so many of each.
        template: "auto" (the model's own chat template), "none" (raw text), a Jinja file, or a `ChatTemplate` with a
            system prompt.
        force: measure cells that are no quantizations of this baseline.
        dtype: in which all compute: "float32", "float16" or "bfloat16"; default float32 on the CPU, else the
            baseline's own.
        device: where they are, for example "cuda"; default the CPU.
        batch_size: prompts per forward pass; by default as many as fit a budget of tokens.
        max_new_tokens: where an answer is cut.
        stream: hold one block of weights at a time, read when it is needed; default where the pair would not fit into
            memory. Then `entropy`, `direction`, `calibration`, `neurons`, `safety_units`, `geometry`, `margin` and
            `attribution` can be measured.

    Raises:
        InputError: something that is no checkpoint, prompt set or dtype; two cells of one name. What is measured later
            raises what the probe's `measure` raises.

    Example:
        >>> study = measure("path/to/model", {"AWQ": "path/to/model-AWQ", "Q4_K_M": "path/to/model-Q4_K_M.gguf"})
        >>> study.entropy  # a pandas table, measured now
        >>> study.direction.plot()  # the report's figure
        >>> study.report("out.html")
    """
    harmful, harmless = prompt_set(harmful, "harmful", limit), prompt_set(harmless, "harmless", limit)
    opened = open_baseline(baseline, dtype, device, stream)
    common: dict[str, Any] = {"template": template, "force": force, "batch_size": batch_size}
    return Measurements(opened, open_cells(cells, opened), harmful, harmless, max_new_tokens, **common)
