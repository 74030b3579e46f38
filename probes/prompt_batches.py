"""Rendered prompts → the batches that a margin, or its gradient, is computed in."""

from __future__ import annotations

from collections.abc import Sequence

from interp.batching import Batch, batches
from interp.errors import InputError
from interp.model import HookedModel
from probes.first_token import TEXTS_AT_ONCE


def prompt_batches(model: HookedModel, texts: Sequence[str], batch_size: int | None = None) -> list[Batch]:
    """Batches of similar length that ask for the last token: at most 64 prompts each, so that logits stay small.

    Args:
        model: its tokenizer, pad token and device.
        texts: rendered prompts.
        batch_size: prompts per batch; by default as many as fit the budget of tokens, `interp.batching.BATCH_TOKENS`.

    Raises:
        InputError: no texts; one that is empty or longer than the context.
    """
    if not texts:
        raise InputError("There are no prompts", "at least one")
    return list(batches(model.token_ids(texts), -1, batch_size, model.hf.device, at_most=TEXTS_AT_ONCE))
