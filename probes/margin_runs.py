"""The same prompts through the same batches again and again, with something different done to the model each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batching import Batch
from interp.errors import NotFinite
from interp.model import HookedModel
from probes.openings import Openings, refusal_margin
from probes.prompt_batches import prompt_batches

Change = Callable[[Tensor], Tensor]
"""An activation → the one that replaces it."""
Recording = list[dict[str, list[Tensor]]]
"""For each batch: site → its activation in each forward pass of that batch."""


@dataclass(frozen=True)
class MarginRuns:
    """Prompts in fixed batches.

    Attributes:
        n: number of prompts.
        batches: what the models read.
        openings: of the baseline.
    """

    n: int
    batches: tuple[Batch, ...]
    openings: Openings

    @classmethod
    def of(
        cls, model: HookedModel, texts: Sequence[str], openings: Openings, batch_size: int | None = None
    ) -> MarginRuns:
        """Prepare rendered prompts.

        Raises:
            InputError: no texts; one that is empty or longer than the context.
        """
        return cls(len(texts), tuple(prompt_batches(model, texts, batch_size)), openings)

    def margins(
        self, model: HookedModel, around: Callable[[int], AbstractContextManager[Any]] | None = None
    ) -> Float[Tensor, " prompt"]:
        """The refusal margin of every prompt, in nats, in the order of the texts.

        Args:
            model: with whatever was done to it.
            around: opened around the forward passes of a batch, whose number it is given.

        Raises:
            NotFinite: a margin is NaN or infinite.
        """
        found = torch.empty(self.n)
        for number, batch in enumerate(self.batches):
            with torch.no_grad(), nullcontext() if around is None else around(number):
                ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
                found[batch.indices] = refusal_margin(model, ids, mask, self.openings).cpu()
        if not torch.isfinite(found).all():
            raise NotFinite("The refusal margin holds NaN or infinity", do="Load the model with dtype=torch.float32")
        return found

    def record(self, model: HookedModel, sites: Sequence[str]) -> Recording:
        """The activations at all positions of all prompts, in the model's dtype, where they are computed.

        A margin may take several forward passes per batch (openings of several tokens): all are recorded. Memory: the
        number of prompts × their length × the widths of the sites.

        Args:
            model: the one whose activations will be put into another.
            sites: hook names, or names of linears for their outputs.
        """
        recording: Recording = [{site: [] for site in sites} for _ in self.batches]

        def keep(number: int, site: str) -> Change:
            def see(activation: Tensor) -> Tensor:
                recording[number][site].append(activation.clone())
                return activation

            return see

        self.margins(model, lambda number: changed(model, {site: keep(number, site) for site in sites}))
        return recording


def replayed(recording: Recording, number: int, site: str, put: Callable[[Tensor, Tensor], Tensor]) -> Change:
    """A change that is given, forward pass by forward pass, what was recorded: put(own activation, recorded one)."""
    passes = iter(recording[number][site])
    return lambda activation: put(activation, next(passes))


@contextmanager
def changed(model: HookedModel, changes: Mapping[str, Change]) -> Iterator[None]:
    """Replace activations at hook points and outputs of linears (by their Hugging Face names) inside the block."""
    hooks = {site: change for site, change in changes.items() if site in model.hooks.points}
    with ExitStack() as opened:
        for site, change in changes.items():
            if site not in hooks:
                module = model.hf.get_submodule(site)
                handle = module.register_forward_hook(lambda _, __, output, change=change: change(output))
                opened.callback(handle.remove)
        opened.enter_context(model.intervene(hooks))
        yield
