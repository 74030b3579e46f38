"""The residual streams of passes that wait for their next block: in memory, and beyond a limit in files."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

LIMIT = 2**30
"""Bytes of residual streams in memory: about 60,000 tokens of a model of 4096 dimensions in float32."""


class States:
    """Tensors by number; those beyond a limit are files of a temporary folder.

    Args:
        limit: bytes that are held in memory.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._held: dict[int, Tensor] = {}
        self._stored: dict[int, torch.device] = {}
        self._folder: TemporaryDirectory[str] | None = None

    def put(self, number: int, state: Tensor) -> None:
        """Keep a tensor."""
        if self.in_memory + state.nbytes <= self._limit:
            self._held[number] = state
            return
        torch.save(state.cpu(), self._file(number))
        self._stored[number] = state.device

    def take(self, number: int) -> Tensor:
        """Get a tensor back, which is then no longer kept."""
        if number in self._held:
            return self._held.pop(number)
        file = self._file(number)
        state = torch.load(file, weights_only=True)
        file.unlink()
        return state.to(self._stored.pop(number))

    @property
    def in_memory(self) -> int:
        """Bytes of the tensors that are in memory."""
        return sum(state.nbytes for state in self._held.values())

    @property
    def n_stored(self) -> int:
        """How many tensors are in files."""
        return len(self._stored)

    def clear(self) -> None:
        """Keep nothing, and remove the folder."""
        self._held.clear()
        self._stored.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _file(self, number: int) -> Path:
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="quantscope-")
        return Path(self._folder.name) / f"{number}.pt"
