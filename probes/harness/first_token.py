"""Numbers per prompt from the logits at its last position, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batching import TEXTS_AT_ONCE
from interp.model import HookedModel
from probes.harness.comparison import Reads


def first_token(
    model: HookedModel, texts: Sequence[str], statistic: Callable[[Tensor], Tensor], batch_size: int | None = None
) -> Float[Tensor, prompt * numbers]:
    """Apply a statistic to the float32 logits of each prompt's first answer token, in the order of the texts.

    Args:
        model: the model that reads the prompts.
        texts: rendered prompts.
        statistic: [prompt, vocab] → [prompt, …].
        batch_size: prompts per forward pass; by default as many as fit the model's budget of tokens.
    """
    return torch.cat([statistic(model.logits(chunk)) for chunk in _chunks(texts, batch_size)])


def first_token_reads(batch_size: int | None = None) -> Reads:
    """What `first_token` will read of every model and side of a comparison; see `probes.harness.comparison.compare`.

    Args:
        batch_size: as given to `first_token`.
    """
    return lambda model, texts: [
        one
        for side in texts.values()
        for chunk in _chunks(side, batch_size)
        for one in model.last_tokens(chunk, logits=True)
    ]


def _chunks(texts: Sequence[str], batch_size: int | None) -> list[Sequence[str]]:
    size = min(batch_size or TEXTS_AT_ONCE, TEXTS_AT_ONCE)
    return [texts[start : start + size] for start in range(0, len(texts), size)]
