"""Models that say nothing: every number that a probe takes of them is defined, and none means anything.

Zero embeddings, a zero final norm or an infinite epsilon leave all tokens equally likely: entropy, margins and
directions of such a model look like measurements, so it is not measured. A model whose answers begin alike whatever was
asked may still hold something in its layers; it is measured, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from interp.errors import SaysNothing
from interp.model import HookedModel

INDISTINCT = 1e-2
"""Log-probabilities (nats) that differ by less say the same; those of a model that works differ by ten and more."""


def require_speech(model: HookedModel, texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Raise unless the model prefers some token to another; warn where its choice does not depend on the prompt.

    Args:
        model: any model.
        texts: sets of rendered prompts, of each of which the first and the last are read.

    Returns:
        A warning where the distribution is the same after all prompts.

    Raises:
        SaysNothing: all tokens are equally likely after every prompt.
        NotFinite: the logits are.
    """
    sample = looked_at(texts)
    log_probabilities = model.logits(sample).double().log_softmax(-1)
    if _range(log_probabilities, over=-1) < INDISTINCT:
        raise SaysNothing(
            f"All tokens are equally likely after {_count(len(sample))}: the model says nothing",
            "logits that differ from token to token",
            "Look for embeddings or norms of zeros and for an infinite epsilon in its config",
        )
    distinct = len({tuple(ids) for ids in model.token_ids(sample)}) > 1
    if distinct and _range(log_probabilities, over=0) < INDISTINCT:
        return [f"the first token is distributed alike after {_count(len(sample))}: it does not read them"]
    return []


def looked_at(texts: Mapping[str, Sequence[str]]) -> list[str]:
    """The prompts that are read: the first and the last of each set."""
    return list(dict.fromkeys(text for prompts in texts.values() for text in (prompts[0], prompts[-1])))


def _range(log_probabilities: Float[Tensor, "prompts vocab"], over: int) -> float:
    return float((log_probabilities.amax(over) - log_probabilities.amin(over)).max())


def _count(prompts: int) -> str:
    return "the one prompt" if prompts == 1 else f"each of {prompts} prompts"
