"""The study file: one TOML file that says which models, cells, prompts, probes and tasks a study has.

Every mistake in it is reported at once, each with its line and field.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from probes.harness.names import NAME, derived_name

if TYPE_CHECKING:
    from interp.organisms.constraints import Constraint

DIRECT, INSPECT = "direct", "inspect"
MAX_BYTES = 2**20
"""Of a study file."""


Format = Literal[
    "dense", "awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "modelopt", "mlx", "mxfp4", "hqq", "gguf"
]
"""One type, so that a name that is none of them is one mistake."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Cell(_Table):
    """A quantized copy of a model's baseline.

    Attributes:
        path: a directory, a .gguf file or a hub id.
        name: of the cell; by default the last part of the path, where that can be a name.
        format: checked when the checkpoint is opened: dense, awq, gptq, compressed-tensors, fp8, bitsandbytes,
            modelopt, mlx, mxfp4, hqq or gguf.
        server: of the engine vllm, the address of a server that runs the cell already; by default vLLM is started.
    """

    path: str
    name: str = Field(default="", pattern=NAME)
    format: Format | None = None
    server: str | None = None

    @property
    def called(self) -> str:
        """Its name, given or not."""
        return self.name or derived_name(self.path)


class Model(_Table):
    """A baseline and its quantized cells.

    Attributes:
        name: of the model; a folder of this name holds its results.
        baseline: the unquantized checkpoint: a directory, a .gguf file or a hub id.
        organism: instead of a baseline, the architecture of a tiny model that is trained on the spot.
        seed: of the organism.
        alignment: of the organism, a multiple of the usual refusal training.
        inside: of the organism, a format whose codes refusal training may not change: a cell in it loses all of it.
        bounded: of the organism, the share of its 4-bit step that refusal training may move a weight by.
        where: of the organism, wildcard over the linears that refusal training may move, with `inside` or `bounded`.
        quantize: cells that are written from the baseline or organism, names of `interp.quantize.settings.NAMES`; they
            are kept in the cache, and written again where the baseline or the writer changed.
        calibration: a file of texts that AWQ and GPTQ of a baseline are calibrated on; by default chats of ours.
        before: the checkpoint from before alignment, which `reversion` needs; of an organism it is known.
        cells: cells that are there already.
        dtype: in which the baseline and all cells compute; by default float32 on a CPU, else the baseline's own.
        device: where they are, for example "cuda"; by default the CPU.
        stream: hold one block of weights of a pair at a time, read when it is needed; by default ("auto") where the
            pair would not fit into memory.
        force: measure cells that do not seem to be made from the baseline; by default only an organism's own.
        num_cpus: cores that a Ray cluster gives to the worker that measures it.
        num_gpus: GPUs that it gives; by default one where the device is a GPU of CUDA.
        server: of the engine vllm, the address of a server that runs the baseline already; by default vLLM is started.
    """

    name: str = Field(pattern=NAME)
    baseline: str | None = None
    organism: str | None = None
    seed: int = Field(default=0, ge=0)
    alignment: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    inside: Literal["Q4_0", "Q8_0"] | None = None
    bounded: float | None = Field(default=None, gt=0, le=8)
    where: str = "*"
    quantize: list[str] = []
    calibration: str | None = None
    before: str | None = None
    cells: list[Cell] = []
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    device: str | None = None
    stream: bool | Literal["auto"] = "auto"
    force: bool | None = None
    num_cpus: int = Field(default=1, ge=1)
    num_gpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    server: str | None = None

    @property
    def cell_names(self) -> list[str]:
        """All cells in their order."""
        return [*self.quantize, *(cell.called for cell in self.cells)]

    @property
    def constraint(self) -> Constraint | None:
        """How far the organism's refusal training may move its weights."""
        from interp.organisms.constraints import constraint

        return constraint(self.inside, self.bounded, self.where)

    @property
    def forced(self) -> bool:
        """Whether cells are measured that do not seem to be made from the baseline.

        An organism's cells were written from this very baseline, so what their writers changed beside rounding
        (GPTQModel's AWQ of Phi) is a warning and no reason to refuse.
        """
        return self.organism is not None if self.force is None else self.force


class Prompts(_Table):
    """What all models are asked.

    Attributes:
        harmful: a file of requests that should be refused, or the name of a built-in set.
        harmless: the same of requests that should be answered.
        template: "auto" (the model's own), "none" (raw text) or a Jinja file.
        system: "auto" (what the template inserts itself), "none" (nothing in its place), the system prompt, or a file.
        limit: take the first so many of each.
        batch_size: prompts per forward pass; by default as many as fit.
    """

    harmful: str = "harmful"
    harmless: str = "harmless"
    template: str = "auto"
    system: str = "auto"
    limit: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)


class Behaviour(_Table):
    """How refusals are measured.

    Attributes:
        runner: "direct" generates while a cell is open; "inspect" runs Inspect tasks: logs, more tasks and engines.
        tasks: refusal (always there), over_refusal, jailbreak, truthfulness, bias; the last three need Inspect.
        engine: of the Inspect runner: "hooked", "llama.cpp" for cells and baselines that are GGUF files, or "vllm", a
            server for each cell.
        data_parallel: copies of each checkpoint in vLLM.
        tensor_parallel: GPUs per copy.
        gpu_memory: share of each GPU's memory that vLLM takes; by default vLLM's own, nearly all.
        max_new_tokens: where an answer is cut.
        truthfulness: a file of questions for that task.
        bias: a file of questions for that task.
    """

    runner: Literal["direct", "inspect"] = "direct"
    tasks: list[str] = ["refusal", "over_refusal"]
    engine: Literal["hooked", "llama.cpp", "vllm"] = "hooked"
    data_parallel: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    gpu_memory: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int = Field(default=48, ge=1)
    truthfulness: str | None = None
    bias: str | None = None


class Judges(_Table):
    """Models that label the answers beside the lexicon.

    Attributes:
        models: one or two, by their Inspect names; none: only the lexicon.
        template: a file with the question; by default the built-in one.
        sample: of cells that keep their refusals the second judge reads so many answers.
    """

    models: list[str] = Field(default=[], max_length=2)
    template: str | None = None
    sample: int = Field(default=100, ge=1)


class Calibration(_Table):
    """Of the RTSI score.

    Attributes:
        calibration: a file that `python -m probes.rtsi fit` wrote; by default the study's published rows.
    """

    calibration: str | None = None


class Bounds(_Table):
    """Limits; where one is exceeded the command ends with exit code 3.

    Attributes:
        max_refusal_drop: share of the baseline's refusals of a task that a cell may lose.
        max_over_refusal_rise: share of the baseline's answers of a task that a cell may turn into refusals.
    """

    max_refusal_drop: float | None = Field(default=None, ge=0, le=1)
    max_over_refusal_rise: float | None = Field(default=None, ge=0, le=1)


class Study(_Table):
    """A study, validated; see `read_study`.

    Attributes:
        models: at least one, each with its cells.
        prompts: what all are asked.
        behaviour: how refusals are measured.
        judges: who labels the answers.
        rtsi: calibration of the score.
        probes: `run` names the probes, by default the cheap ones; a table of a probe's name holds its options.
        bounds: limits for the exit code.
        out: the run folder, relative to where the command runs; by default runs/NAME, NAME being the file's.
        text: the file's content.
        directory: what relative paths in it start from.
    """

    models: list[Model] = Field(min_length=1)
    prompts: Prompts = Prompts()
    behaviour: Behaviour = Behaviour()
    judges: Judges = Judges()
    rtsi: Calibration = Calibration()
    probes: dict[str, Any] = {}
    bounds: Bounds = Bounds()
    out: str | None = None
    text: str = Field(default="", exclude=True)
    directory: Path = Field(default=Path("."), exclude=True)

    def path(self, given: str) -> str:
        """A path of the file as it is from here: relative ones start from the file's folder, hub ids stay."""
        local = self.directory / os.path.expanduser(given)  # Path.expanduser raises where there is no such user
        # os.path.exists: a name that is too long is none, where Path.exists raises
        return str(local) if os.path.exists(local) or not _may_be_hub_id(given) else given


def sha256_of(file: str | Path) -> str:
    """Hex digest of a file's content; "" where there is none."""
    path = Path(file)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _may_be_hub_id(path_or_id: str) -> bool:
    from interp.hub import HUB_ID

    return bool(HUB_ID.match(path_or_id)) and not path_or_id.endswith((".gguf", ".safetensors"))
