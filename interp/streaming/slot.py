"""The one part of a model whose weights are in memory: the embedding, a block, or the unembedding."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp.architectures import Architecture
from interp.loading import put, read_dense, sources

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint

ALWAYS = ""
"""The part that is never dropped: final norm and position embeddings, a few thousandths of a model."""


def parts_of(hf: Any, architecture: Architecture) -> dict[str, list[str]]:
    """Part (a module's path, or `ALWAYS`) → its tensors, in the order in which a forward pass reaches the parts.

    Args:
        hf: the transformers model, which may lie on the meta device.
        architecture: its row.
    """
    unembedding = next(name for name, module in hf.named_modules() if module is hf.get_output_embeddings())
    blocks = [f"{architecture.blocks}.{index}" for index in range(hf.config.num_hidden_layers)]
    parts: dict[str, list[str]] = {part: [] for part in (ALWAYS, architecture.embed, *blocks, unembedding)}
    depth = architecture.blocks.count(".") + 2
    beside = {} if architecture.layer_input is None else {architecture.layer_input.embed: architecture.embed}
    for name in hf.state_dict():
        module = name.rpartition(".")[0]
        candidates = (".".join(name.split(".")[:depth]), beside.get(module, module), ALWAYS)
        parts[next(part for part in candidates if part in parts)].append(name)
    return parts


class Slot:
    """Puts the weights of one part at a time into a model on the meta device, in time for the part's forward pass.

    Args:
        hf: the transformers model; its parameters stay on the meta device but for those of the part that is held.
        architecture: its row.
        checkpoint: where the weights are.
        dtype: of the weights in memory.
        device: where they are put.
        ahead: read the part that follows in a thread while one computes; of a pass back, the one before. Default: on an
            accelerator only, since reading is itself work for the CPU.

    Attributes:
        held: the part whose weights are in the model.
        hooks: ids of the hooks by which the model's modules ask for their part.

    Raises:
        InputError: the checkpoint lacks a tensor of the model, or holds one that the model has no place for.
    """

    def __init__(
        self,
        hf: Any,
        architecture: Architecture,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        ahead: bool | None = None,
    ) -> None:
        self.hf, self.architecture, self.device = hf, architecture, device
        self._checkpoint, self._dtype = checkpoint, dtype
        self._sources = sources(hf, checkpoint)
        self._parts = parts_of(hf, architecture)
        self._part_of = {name: part for part, names in self._parts.items() for name in names}
        self._empty: dict[str, Tensor] = {n: t.detach() for n, t in hf.state_dict(keep_vars=True).items()}
        self._reader = ThreadPoolExecutor(1) if (device.type != "cpu" if ahead is None else ahead) else None
        self._coming: tuple[str, Future[dict[str, Tensor]]] | None = None
        self.held = ALWAYS
        self._fill(ALWAYS, self._read(ALWAYS))
        _move_buffers(hf, device)
        self.hooks = {
            hf.get_submodule(part).register_forward_pre_hook(lambda *_, part=part: self.hold(part)).id
            for part in self._parts
            if part != ALWAYS
        }

    def hold(self, part: str) -> None:
        """Have the weights of a part in the model, and those of no other part.

        Raises:
            InputError: a tensor cannot be read, or has another shape than the model's.
            NotFinite: a tensor holds NaN or infinity.
        """
        if part == self.held:
            return
        before = self.held
        self.drop()
        self._fill(part, self._arrived(part))
        self.held = part
        if self._reader is not None and (after := self._following(before, part)) is not None:
            self._coming = after, self._reader.submit(self._read, after)

    def parameter(self, name: str) -> Tensor:
        """A parameter, its part being held from now on.

        Raises:
            InputError: as `hold`.
            NotFinite: as `hold`.
        """
        if (part := self._part_of[name]) != ALWAYS:
            self.hold(part)
        return self.hf.get_parameter(name).detach()

    def drop(self) -> None:
        """Have the weights of no part in the model."""
        if self.held != ALWAYS:
            for name in self._parts[self.held]:
                put(self.hf, name, self._empty[name])
            self.held = ALWAYS

    def forget(self) -> None:
        """Drop the part, and the one that was read ahead."""
        self.drop()
        if self._coming is not None:
            self._coming[1].cancel() or self._coming[1].result()
            self._coming = None

    @cached_property
    def tied(self) -> dict[str, str]:
        """A parameter's further name → the first, of those that are stored once, or twice with the same numbers."""
        return {
            name: original
            for name, original in self.hf.all_tied_weights_keys.items()
            if self._sources[name] == self._sources[original] or torch.equal(*map(self._read_one, (name, original)))
        }

    @property
    def most_bytes(self) -> int:
        """What the largest part takes."""
        return max(map(self.bytes_of, self._parts))

    def bytes_of(self, part: str) -> int:
        """What a part takes while it is held."""
        return sum(self._empty[name].nbytes for name in self._parts[part])

    def _arrived(self, part: str) -> Mapping[str, Tensor]:
        """The part that was read ahead, if it is this one, else it is read now."""
        coming, self._coming = self._coming, None
        if coming is None:
            return self._read(part)
        tensors = coming[1].result()
        return tensors if coming[0] == part else self._read(part)

    def _following(self, before: str, part: str) -> str | None:
        """What is held after a part that was held after another: the next one, on the way back the one before."""
        order = [name for name in self._parts if name != ALWAYS]
        place = order.index(part)
        back = before != ALWAYS and 0 < place == order.index(before) - 1
        after = place - 1 if back else place + 1
        return order[after] if after < len(order) else None

    def _read(self, part: str) -> dict[str, Tensor]:
        """A part's tensors in main memory; pinned where a GPU will copy them."""
        tensors = {name: self._read_one(name) for name in self._parts[part]}
        return {n: t.pin_memory() for n, t in tensors.items()} if self.device.type == "cuda" else tensors

    def _read_one(self, name: str) -> Tensor:
        return read_dense(self._checkpoint, self._sources[name], tuple(self._empty[name].shape), self._dtype)

    def _fill(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        for name in self._parts[part]:
            put(self.hf, name, tensors[name].to(self.device, non_blocking=True))


def _move_buffers(hf: nn.Module, device: torch.device) -> None:
    """Buffers that are in no checkpoint (rotary frequencies, masks) are there already, on the CPU."""
    for module in hf.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
