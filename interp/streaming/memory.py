"""What a pair takes in memory, worked out from headers before anything is loaded, and whether it is streamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from interp.errors import InputError
from interp.inspect.wording import sized

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint
    from interp.model import HookedModel

SHARE = 0.9
"""Share of the free memory that two models may take; the rest is for what they compute."""
GROUPS = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits that schedulers and containers set."""

FILES = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
"""Controllers of a group, as the two versions of cgroups list them → its files of the limit and of what is in use."""


@dataclass(frozen=True)
class Plan:
    """What is held.

    Attributes:
        pair: bytes of a baseline and one cell.
        part: bytes of weights that are held at a time when they are streamed.
        free: bytes that are free where they go; None where nobody knows.
        dtype: of the weights.
        stream: whether they are streamed.
    """

    pair: int
    part: int
    free: int | None
    dtype: torch.dtype
    stream: bool

    def __str__(self) -> str:
        known = "" if self.free is None else f", {sized(self.free)} are free"
        how = f"streaming, {sized(self.part)} of weights at a time" if self.stream else "not streamed"
        return f"the pair takes {sized(self.pair)} in {str(self.dtype).removeprefix('torch.')}{known}: {how}"


def plan(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, stream: bool | None = None) -> Plan:
    """Work out what a model and one cell of it take, and stream them if they do not fit.

    Args:
        checkpoint: of the model; nothing but its headers is read.
        dtype: in which both compute.
        device: where both go.
        stream: whether they are streamed; None to find out.
    """
    sizes = part_sizes(checkpoint, dtype)
    pair, free = 2 * sum(sizes.values()), free_memory(device)
    held = max(sizes.values()) * (1 if device.type == "cpu" else 2)  # on an accelerator the next one is on its way
    fits = free is None or pair <= SHARE * free
    return Plan(pair, held, free, dtype, not fits if stream is None else stream)


def part_sizes(checkpoint: Checkpoint, dtype: torch.dtype) -> Counter[str]:
    """Bytes of each block, by its path, and of every tensor outside the blocks, by its name; embeddings are one."""
    row = checkpoint.architecture
    blocks = row.blocks + "."
    beside = {} if row.layer_input is None else {f"{row.layer_input.embed}.weight": f"{row.embed}.weight"}
    sizes: Counter[str] = Counter()
    for name, shape in checkpoint.shapes().items():
        outside = beside.get(name, name)
        part = blocks + name.removeprefix(blocks).partition(".")[0] if name.startswith(blocks) else outside
        sizes[part] += torch.Size(shape).numel() * dtype.itemsize
    return sizes


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free: of a GPU, or of this machine within the limits of this process's group; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    import psutil

    return min(psutil.virtual_memory().available, *_group_limits())


def _group_limits() -> Iterator[int]:
    """What is left of each limit above this process (cgroups); a machine without them has none."""
    yield torch.iinfo(torch.int64).max
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        for controllers, own in (line.split(":", 2)[1:] for line in lines):
            if controllers in FILES:
                limit, usage = FILES[controllers]
                group = GROUPS / controllers / own.lstrip("/")
                yield from _left([group, *group.parents], limit, usage)
    except (OSError, ValueError):
        return


def _left(groups: Sequence[Path], limit: str, usage: str) -> Iterator[int]:
    """Limit − use, the pages of files that are cached not counted, of the groups that have a limit."""
    for group in groups:
        if (group / limit).is_file() and (most := (group / limit).read_text(encoding="utf-8").strip()) != "max":
            stats = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
            cached = sum(int(stats.get(name, 0)) for name in ("inactive_file", "active_file"))
            yield max(0, int(most) - int((group / usage).read_text(encoding="utf-8")) + cached)


@contextmanager
def forgotten_after(*models: HookedModel) -> Iterator[None]:
    """Streamed models hold no weights after this."""
    try:
        yield
    finally:
        for model in models:
            if model.streamed is not None:
                model.streamed.slot.forget()


def require_in_memory(model: HookedModel, what: str) -> None:
    """Tell who wants of a streamed model what needs all of its weights.

    Args:
        model: any model.
        what: is wanted.

    Raises:
        InputError: the model is streamed.
    """
    if model.streamed is not None:
        raise InputError(
            f"{what} needs the whole model in memory, and this one is streamed",
            "a model that was loaded without stream",
            "Load it with stream=False, in a narrower dtype if it does not fit",
        )
