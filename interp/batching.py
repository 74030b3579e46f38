"""Token lists → right-padded batches.

Padding goes to the right and real tokens keep positions 0, 1, 2, …: under a causal mask no real token ever sees a pad,
whatever the position embedding and however wide the sliding window, so padding cannot change a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError

PAD = 0
"""The token at positions that no real token sees. Any of the vocabulary may stand there; a tokenizer's own pad token
need not be one of the model's (fine-tunes of Llama 2 add one and leave the embedding as it was)."""
BATCH_TOKENS = 8192
"""Tokens of one batch, pads included, where the caller names no batch size."""


@dataclass(frozen=True)
class Batch:
    """One padded batch.

    Attributes:
        indices: which texts these are.
        inputs: `input_ids`, `attention_mask` and `position_ids` for the model.
        positions: for each row the token asked for.
    """

    indices: Int[Tensor, " batch"]
    inputs: dict[str, Tensor]
    positions: Int[Tensor, " batch"]

    def at_position(self, activation: Tensor) -> Tensor:
        """[batch, pos, …] → [batch, …], each row at its own position."""
        rows = torch.arange(len(activation), device=activation.device)
        return activation[rows, self.positions.to(activation.device)]


def resolve_position(position: int, length: int, which: int) -> int:
    """The index of a token counted from the beginning (≥ 0) or the end (< 0).

    Raises:
        InputError: the text is shorter than that.
    """
    resolved = position + length if position < 0 else position
    if not 0 <= resolved < length:
        raise InputError(
            f"Prompt {which} has {length} tokens, so it has no position {position}",
            f"a position from {-length} to {length - 1}",
            "Leave this prompt out, or ask for position -1, the last token",
        )
    return resolved


def batches(
    token_ids: Sequence[Sequence[int]],
    position: int,
    batch_size: int | None,
    device: torch.device,
    at_most: int | None = None,
    budget: int | None = None,
) -> Iterator[Batch]:
    """Batches of texts of similar length, longest first so that running out of memory shows at once.

    The rows of a batch stand in the order of the texts.

    `batch_size` texts each, by default as many as a budget of tokens allows, pads included; never more than `at_most`.

    Raises:
        InputError: a text has no token at `position`.
    """
    positions = [resolve_position(position, len(ids), which) for which, ids in enumerate(token_ids)]
    order = sorted(range(len(token_ids)), key=lambda which: -len(token_ids[which]))
    start = 0
    while start < len(order):
        longest = len(token_ids[order[start]])
        size = batch_size or max(1, (budget or BATCH_TOKENS) // longest)
        indices = sorted(order[start : start + min(size, at_most or size)])
        yield Batch(
            torch.tensor(indices),
            _padded([token_ids[which] for which in indices], longest, device),
            torch.tensor([positions[which] for which in indices]),
        )
        start += len(indices)


def _padded(token_ids: Sequence[Sequence[int]], width: int, device: torch.device) -> dict[str, Tensor]:
    input_ids = torch.full((len(token_ids), width), PAD, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    position_ids = torch.arange(width).expand_as(input_ids)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    return {name: tensor.to(device) for name, tensor in inputs.items()}


TEXTS_AT_ONCE = 64
"""Prompts whose logits are held at one time: with a vocabulary of 152,000 and in float64, 78 MB."""
