"""Activations that were kept: by hook name, of every text, at all of its tokens or some; in memory, or in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import InputError, NotFinite


class ActivationCache(Mapping[str, Tensor]):
    """Hook name → [n_texts, …] at one position, or [n_texts, positions, …] at several; float32 on the CPU.

    Texts stand in the order in which they were given, their tokens without padding at the beginning of their row: where
    a text has fewer positions than another one, the rest of its row is NaN, and `mask` says which places are real. (In
    TransformerLens there stands what the model computes of the pads.)

    Attributes:
        mask: whether a place is a token of the text, [n_texts] or [n_texts, positions].
        token_ids: the tokens of every text.

    Example:
        >>> _, cache = model.run_with_cache(["How are you?", "Tell me."], "blocks.*.hook_resid_post")
        >>> cache["blocks.3.hook_resid_post"].shape, cache["resid_post", 3].shape, cache.mask
    """

    def __init__(
        self, values: Mapping[str, Tensor], mask: Bool[Tensor, "*n_texts"], token_ids: Sequence[Sequence[int]]
    ) -> None:
        self.mask = mask
        self.token_ids = [list(ids) for ids in token_ids]
        self._values = values

    def __getitem__(self, name: str | tuple[str, int]) -> Tensor:
        if isinstance(name, tuple):
            name = self._full_name(*name)
        if name not in self._values:
            raise KeyError(f"{name!r} was not kept; there are {', '.join(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        places = " × ".join(map(str, self.mask.shape))
        return (
            f"<ActivationCache: {len(self)} hooks, {places} {'texts × positions' if self.mask.ndim > 1 else 'texts'}>"
        )

    def remove_batch_dim(self) -> ActivationCache:
        """The cache of the only text: its activations without their first dimension.

        Raises:
            InputError: there are several texts.
        """
        if len(self.token_ids) != 1:
            raise InputError(f"The cache holds {len(self.token_ids)} texts", "one, to leave the batch dimension out")
        return ActivationCache({name: value[0] for name, value in self.items()}, self.mask[0], self.token_ids)

    def _full_name(self, kind: str, block: int) -> str:
        """ "resid_post" or "z" of a block, as TransformerLens abbreviates them."""
        prefix = f"blocks.{block}."
        return next((n for n in self if n.startswith(prefix) and n.endswith(f".hook_{kind}")), f"{prefix}hook_{kind}")


class Rows:
    """Activations collected batch by batch into one tensor a name, [n_texts, *positions, …], NaN where nothing comes.

    Args:
        mask: which places will be filled, [n_texts] or [n_texts, positions].
    """

    def __init__(self, mask: Bool[Tensor, "*n_texts"]) -> None:
        self.mask = mask
        self.values: dict[str, Tensor] = {}

    def put(self, indices: Tensor, activations: Mapping[str, Tensor]) -> None:
        """Keep the rows of some texts.

        Raises:
            NotFinite: an activation at a real place is NaN or infinity.
        """
        mask = self.mask[indices]
        for name, activation in activations.items():
            rows = activation.float().cpu()
            finite(name, rows[mask])
            if name not in self.values:
                self.values[name] = torch.full((*self.mask.shape, *rows.shape[mask.ndim :]), torch.nan)
            self.values[name][indices] = torch.where(
                mask.reshape(*mask.shape, *[1] * (rows.ndim - mask.ndim)), rows, torch.nan
            )


def finite(name: str, value: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        NotFinite: it holds NaN or infinity.
    """
    if not torch.isfinite(value).all():
        raise NotFinite(
            f"{name} holds values that are not finite (NaN or infinity)",
            do="Load the model with dtype=torch.float32 or bfloat16",
        )
    return value
