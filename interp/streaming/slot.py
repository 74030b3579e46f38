"""The one part of a model whose weights are in memory: the embedding, a block, or the unembedding."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
        ahead: read the part that follows in a thread while one computes. Default: on an accelerator only, since reading
            is itself work for the CPU.

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
        self._empty: dict[str, Tensor] = {n: t.detach() for n, t in hf.state_dict(keep_vars=True).items()}
        self._reader = ThreadPoolExecutor(1) if (device.type != "cpu" if ahead is None else ahead) else None
        self._coming: tuple[str, Future[dict[str, Tensor]]] | None = None
        self.held = ALWAYS
        self._fill(ALWAYS, self._read(ALWAYS))
        _move_buffers(hf, device)
        for part in self._parts:
            if part != ALWAYS:
                hf.get_submodule(part).register_forward_pre_hook(lambda *_, part=part: self.hold(part))

    def hold(self, part: str) -> None:
        """Have the weights of a part in the model, and those of no other part.

        Raises:
            InputError: a tensor cannot be read, or has another shape than the model's.
            NotFinite: a tensor holds NaN or infinity.
        """
        if part == self.held:
            return
        self.drop()
        self._fill(part, self._arrived(part))
        self.held = part
        if self._reader is not None and (after := self._following(part)) is not None:
            self._coming = after, self._reader.submit(self._read, after)

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

    def _following(self, part: str) -> str | None:
        parts = list(self._parts)
        return next(iter(parts[parts.index(part) + 1 :]), None)

    def _read(self, part: str) -> dict[str, Tensor]:
        """A part's tensors in main memory; pinned where a GPU will copy them."""
        tensors = {}
        for name in self._parts[part]:
            shape = tuple(self._empty[name].shape)
            tensor = read_dense(self._checkpoint, self._sources[name], shape, self._dtype)
            tensors[name] = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensors

    def _fill(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        for name in self._parts[part]:
            put(self.hf, name, tensors[name].to(self.device, non_blocking=True))


def _move_buffers(hf: nn.Module, device: torch.device) -> None:
    """Buffers that are in no checkpoint (rotary frequencies, masks) are there already, on the CPU."""
    for module in hf.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
