"""Which tokens of every text: one, some or all, counted in the text itself whatever the padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.batching import resolve_position

Position = int | slice | Sequence[int] | Literal["all"]
"""One token, from the end if negative; a slice or a list of such tokens; or all of them."""


@dataclass(frozen=True)
class Places:
    """The tokens asked for, as indices from the beginning of each text.

    Attributes:
        index: [n_texts, positions]; 0 where a text has fewer.
        mask: which of them are there.
        single: whether one token was asked for, so that activations have no dimension of positions.
    """

    index: Int[Tensor, "n_texts positions"]
    mask: Bool[Tensor, "n_texts positions"]
    single: bool

    @classmethod
    def of(cls, position: Position, lengths: Sequence[int]) -> Places:
        """The places of texts of these many tokens.

        Raises:
            InputError: a text is too short for a position that is named; a slice takes what is there.
        """
        rows = [_places(position, length, which) for which, length in enumerate(lengths)]
        width = max(map(len, rows), default=0)
        index = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows], dtype=torch.bool)
        return cls(index.reshape(len(rows), width), mask.reshape(len(rows), width), isinstance(position, int))

    @property
    def kept(self) -> Bool[Tensor, "*n_texts"]:
        """The mask as a cache has it: without the dimension of positions where there is none."""
        return self.mask[:, 0] if self.single else self.mask

    def squeeze(self, activation: Tensor) -> Tensor:
        """[batch, positions, …] as a cache has it."""
        return activation[:, 0] if self.single else activation


def _places(position: Position, length: int, which: int) -> list[int]:
    if position == "all":
        return list(range(length))
    if isinstance(position, slice):
        return list(range(length))[position]
    named = [position] if isinstance(position, int) else position
    return [resolve_position(int(one), length, which) for one in named]
