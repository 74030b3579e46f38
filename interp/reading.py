"""How a model reads texts: as tokens, in batches, in forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.batching import Batch, batches
from interp.chat import as_texts, encode, render
from interp.errors import InputError
from interp.hooks import Hooks
from interp.passes import Pass, in_memory, unembed_only

if TYPE_CHECKING:
    from interp.streaming.streamed import Streamed


class ReadsTexts:
    """What everything that a model computes of texts goes through, in memory or streamed.

    Attributes:
        hf: the transformers model.
        tokenizer: its tokenizer.
        hooks: its hooks.
        streamed: reads the weights part by part where they are not in memory, else None.

    Example:
        >>> model = load("path/to/model-AWQ")
        >>> [batch.inputs["input_ids"].shape for batch in model.batches(prompts, chat=True)]
    """

    hf: Any
    tokenizer: Any
    hooks: Hooks
    streamed: Streamed | None

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs."""
        return self.hf.device if self.streamed is None else self.streamed.device

    def run(self, passes: Iterable[Pass]) -> Iterator[dict[str, Tensor]]:
        """Forward passes in order, under the hooks that are open: what everything here computes with.

        Args:
            passes: what is read and what is kept of each.

        Yields:
            What is kept of each pass, by name, [batch, kept, …], in the model's dtype.
        """
        if self.streamed is None:
            return in_memory(self.hf, self.hooks, passes)
        return self.streamed.run(self.hooks, passes)

    def expect(self, passes: Iterable[Pass]) -> None:
        """Announce the passes that will be asked for next, so that a streamed model reads its weights once for all.

        Args:
            passes: as they will be given to `run`, by whatever method; a model in memory has no use for them.
        """
        if self.streamed is not None:
            self.streamed.expect(passes)

    def last_tokens(
        self, texts: Sequence[str], names: Sequence[str] = (), logits: bool = False, batch_size: int | None = None
    ) -> list[Pass]:
        """The passes over texts of which the last token is kept: what `stream`, `activations` and `logits` run.

        Args:
            texts: prompts.
            names: of the hooks whose activations are kept.
            logits: whether the logits are kept, too.
            batch_size: texts per forward pass; by default as many as fit a budget of tokens.

        Raises:
            InputError: as `batches`.
        """
        read = self.batches(texts, batch_size=batch_size)
        return [Pass(batch.inputs, batch.positions[:, None], names, logits) for batch in read]

    def batches(
        self,
        texts: str | Sequence[str],
        position: int = -1,
        chat: bool = False,
        batch_size: int | None = None,
        at_most: int | None = None,
        budget: int | None = None,
        then: int = 0,
    ) -> Iterator[Batch]:
        """Texts as padded batches of similar length on the model's device, for a forward pass each.

        Args:
            texts: prompts, or a single one.
            position: which token of each text is asked for.
            chat: render through the chat template.
            batch_size: texts per batch; by default as many as fit a budget of tokens, `interp.batching.BATCH_TOKENS`.
            at_most: never more than so many: `interp.batching.TEXTS_AT_ONCE` keeps logits small.
            budget: tokens of a batch, pads included, where no batch size is given.
            then: tokens that will be read after each text; see `token_ids`.

        Raises:
            InputError: no texts; one without tokens, longer than the context, or without a token at the position.
        """
        texts = as_texts(texts)
        if not texts:
            raise InputError("There are no prompts", "at least one")
        return batches(self.token_ids(texts, chat, then), position, batch_size, self.device, at_most, budget)

    def token_ids(self, texts: str | Sequence[str], chat: bool = False, then: int = 0) -> list[list[int]]:
        """Tokens of every text, with exactly one BOS where the model has one.

        Args:
            texts: prompts, or a single one; never truncated.
            chat: render each text through the chat template, with the generation prompt.
            then: tokens that will be read after each, for which the context must have room, too.

        Raises:
            InputError: a text without tokens, longer than the context, or with a token that the model does not have; no
                chat template although `chat`.
        """
        texts = as_texts(texts)
        encoded = encode(self.tokenizer, render(self.tokenizer, texts, "chat" if chat else "none").texts)
        context = getattr(self.hf.config, "max_position_embeddings", None)
        self.require_known(encoded)
        for which, ids in enumerate(encoded):
            if not ids:
                raise InputError(f"Prompt {which} is empty: it has no tokens", do="Leave it out")
            if context is not None and len(ids) + then > context:
                after = f", and {then} are read after it" if then else ""
                raise InputError(
                    f"Prompt {which} ({texts[which][:40]!r}…) has {len(ids)} tokens{after}",
                    f"at most {context}, the model's context",
                    "Shorten it or leave it out; prompts are never truncated",
                )
        return encoded

    def require_known(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Check that the model has an embedding for every token.

        Args:
            token_ids: of prompts.

        Raises:
            InputError: it lacks one.
        """
        known = self.hf.get_input_embeddings().num_embeddings
        largest = max((max(ids, default=0) for ids in token_ids), default=0)
        if largest >= known:
            raise InputError(
                f"A prompt holds the token {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r})",
                f"tokens below {known}, the rows of the model's embedding",
                "The tokenizer belongs to another model: give the one that this one was trained with",
            )

    def unembed_only(self, select: Callable[[Tensor], Tensor]) -> AbstractContextManager[Any]:
        """Unembed some positions instead of all: the logits of a whole batch can be larger than the model.

        Args:
            select: [batch, pos, d_model] → [batch, chosen, d_model]; the logits are then [batch, chosen, vocab].
        """
        return unembed_only(self.hf, select)
