"""What people have at hand (paths, checkpoints, models, lists, one of them) → a baseline, its cells, prompt sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.checkpoint import Checkpoint
from interp.errors import InputError
from interp.model import HookedModel
from probes.harness.comparison import Cells
from probes.harness.names import derived_name, name_problem
from probes.harness.opening import open_model
from probes.harness.prompts import PromptSet, builtin, read_prompts

Source = str | Path | Checkpoint | HookedModel
"""A model: a directory, a .gguf file, a hub id, an opened checkpoint, or a loaded model."""
Prompts = PromptSet | str | Path | Sequence[str] | None
"""A prompt set, a file or the name of a built-in set, or the requests themselves."""


class OpenedCells(Cells):
    """`Cells` that keep the one that was opened last, so that probe after probe can look at a single cell."""

    def __init__(self, paths: Mapping[str, str | Path], baseline: HookedModel, device: str | None = None) -> None:
        super().__init__(paths, baseline, device)
        self._last: tuple[str, HookedModel] | None = None

    def __getitem__(self, name: str) -> HookedModel:
        if self._last is None or self._last[0] != name:
            self._last = None  # its memory goes before the next one needs as much
            self._last = name, super().__getitem__(name)
        return self._last[1]


if TYPE_CHECKING:
    Opened = Mapping[str, HookedModel]
else:  # see `probes.harness.comparison`
    Opened = Mapping


def open_baseline(source: Source, dtype: str | None, device: str | None, stream: bool | None = None) -> HookedModel:
    """The baseline, loaded.

    Raises:
        InputError: no checkpoint; an unknown dtype; a loaded model that is asked to be of another dtype or elsewhere.
    """
    import torch

    if isinstance(source, HookedModel):
        if dtype is not None or device is not None or stream is not None:
            expected = "no dtype, no device and no stream beside it"
            raise InputError("The baseline is loaded already", expected, "Give its path")
        return source
    if dtype is not None and dtype not in ("float32", "float16", "bfloat16"):
        raise InputError(f"The dtype {dtype!r} is not known", "float32, float16 or bfloat16")
    return open_model(source, None if dtype is None else getattr(torch, dtype), device, stream)


def open_cells(sources: Any, baseline: HookedModel) -> Opened:
    """Cells by name: those on disk are opened one at a time, loaded models stay as they are.

    Raises:
        InputError: no cells; something that is no model; two cells of one name, or a name that no cell can have.
    """
    named = dict(_named(sources))
    for name, source in named.items():
        if not isinstance(source, (str, Path, Checkpoint, HookedModel)):
            raise InputError(
                f"The cell {name} is a {type(source).__name__}",
                "a path, a hub id, a checkpoint or a loaded model",
                'Give them by name: {"AWQ": "path/to/model-AWQ"}',
            )
        if problem := name_problem(name):
            raise InputError(f"The cell {name}: {problem}", do='Name it: {"AWQ": "path/to/model-AWQ"}')
    on_disk = {name: _path(source) for name, source in named.items() if not isinstance(source, HookedModel)}
    opened = OpenedCells(on_disk, baseline, str(baseline.device))
    if on_disk.keys() == named.keys():
        return opened
    return {name: source if isinstance(source, HookedModel) else opened[name] for name, source in named.items()}


def _named(sources: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(sources, Mapping):
        yield from ((str(name), source) for name, source in sources.items())
        return
    several = isinstance(sources, Sequence) and not isinstance(sources, str)
    seen: dict[str, Any] = {}
    for source in sources if several else [sources]:
        name = name_of(source)
        if name in seen:
            raise InputError(f"Two cells are named {name!r}", "one name for each", 'Name them: {"AWQ": path, …}')
        seen[name] = source
    yield from seen.items()


def name_of(source: Any, otherwise: str = "cell") -> str:
    """What a model is called that was given no name: the last part of its path, without .gguf."""
    stored = source.checkpoint if isinstance(source, HookedModel) else source
    if isinstance(stored, Checkpoint):
        stored = stored.path
    return otherwise if not isinstance(stored, (str, Path)) else derived_name(str(Path(stored).resolve()))


def _path(source: str | Path | Checkpoint) -> str | Path:
    return source.path if isinstance(source, Checkpoint) else source


def prompt_set(prompts: Prompts, side: str, limit: int | None) -> PromptSet:
    """The prompts of a side; the built-in ones where none are given.

    Raises:
        InputError: a file that cannot be used; a limit below 1.
    """
    if prompts is None or prompts in ("harmful", "harmless", "borderline"):
        side_prompts = builtin(str(prompts or side))
    elif isinstance(prompts, (str, Path)):
        side_prompts = read_prompts(prompts)
    else:
        side_prompts = prompts if isinstance(prompts, PromptSet) else PromptSet(f"{side} prompts", tuple(prompts))
    return side_prompts if limit is None else side_prompts.take(limit)
