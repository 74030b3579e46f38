"""Models that say nothing: every number that a probe takes of them is defined, and none means anything.

Zero embeddings, a zero final norm or an infinite epsilon leave all tokens equally likely; a broken attention leaves the
same distribution whatever was asked. Entropy, margins and directions of such a model look like measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from interp.errors import SaysNothing
from interp.model import HookedModel

INDISTINCT = 1e-2
"""Log-probabilities (nats) that differ by less say the same; those of a model that works differ by ten and more."""


def require_speech(model: HookedModel, texts: Mapping[str, Sequence[str]]) -> None:
    """Raise unless the first token of the answer depends on anything.

    Args:
        model: any model.
        texts: sets of rendered prompts, of each of which the first and the last are read.

    Raises:
        SaysNothing: all tokens are equally likely after every prompt, or the distribution is the same after all.
        NotFinite: the logits are.
    """
    sample = list(dict.fromkeys(text for prompts in texts.values() for text in (prompts[0], prompts[-1])))
    log_probabilities = model.logits(sample).double().log_softmax(-1)
    if _range(log_probabilities, over=-1) < INDISTINCT:
        raise SaysNothing(
            f"All tokens are equally likely after {_count(len(sample))}: the model says nothing",
            "logits that differ from token to token",
            "Look for embeddings or norms of zeros and for an infinite epsilon in its config",
        )
    distinct = len({tuple(ids) for ids in model.token_ids(sample)}) > 1
    if distinct and _range(log_probabilities, over=0) < INDISTINCT:
        raise SaysNothing(
            f"The first token is distributed alike after {_count(len(sample))}: the model does not read its prompts",
            "logits that differ from prompt to prompt",
            "Look for weights of zeros in its attention and embeddings",
        )


def _range(log_probabilities: Float[Tensor, "prompts vocab"], over: int) -> float:
    return float((log_probabilities.amax(over) - log_probabilities.amin(over)).max())


def _count(prompts: int) -> str:
    return "the one prompt" if prompts == 1 else f"each of {prompts} prompts"
