"""One forward pass as a value: what the model reads and what is kept of it.

How passes are computed is up to the model: one after the other where its weights are in memory
(`in_memory`), all of them block by block where they are not (`interp.streaming`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.hooks import Hooks

LOGITS = "logits"
"""What logits are called among the activations of a pass."""


def _nothing() -> None:
    """Nobody has to be told that a pass begins."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass.

    Attributes:
        inputs: `input_ids`, `attention_mask` and `position_ids`, [batch, pos], on the model's device.
        index: which tokens of each row are kept, [batch, kept].
        names: of the hooks whose activations are kept.
        logits: whether the logits of these tokens are kept, too.
        begin: called whenever the model begins or goes on with this pass.
    """

    inputs: Mapping[str, Tensor]
    index: Int[Tensor, "batch kept"]
    names: Sequence[str] = ()
    logits: bool = False
    begin: Callable[[], object] = _nothing

    @property
    def kept(self) -> list[str]:
        """The names of everything that is kept."""
        return [*self.names, *[LOGITS] * self.logits]

    def take(self, activation: Tensor) -> Tensor:
        """[batch, pos, …] → [batch, kept, …], a copy."""
        index = self.index.to(activation.device)
        return activation[torch.arange(len(index), device=activation.device)[:, None], index]


def unembed_only(hf: Any, select: Callable[[Tensor], Tensor]) -> AbstractContextManager[Any]:
    """See `HookedModel.unembed_only`."""
    return hf.get_output_embeddings().register_forward_pre_hook(lambda _, args: (select(args[0]),))


def in_memory(hf: Any, hooks: Hooks, passes: Iterable[Pass]) -> Iterator[dict[str, Tensor]]:
    """Compute one pass after the other.

    Args:
        hf: the transformers model.
        hooks: of this model; what is open acts on every pass.
        passes: in order.

    Yields:
        What is kept of each pass, by name, [batch, kept, …], in the model's dtype and where it was computed.
    """
    for one in passes:
        one.begin()
        with torch.no_grad(), hooks.capture(one.names, one.take) as activations, unembed_only(hf, one.take):
            if one.logits:
                activations[LOGITS] = hf(**one.inputs, use_cache=False).logits
            else:
                hf.base_model(**one.inputs, use_cache=False)
        yield activations
