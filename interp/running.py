"""What `HookedModel.run_with_cache`, `run_with_hooks`, `write_cache` and `generate` do; see there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.batching import batches
from interp.cache import ActivationCache, Rows
from interp.chat import as_texts
from interp.errors import InputError
from interp.hooks import Names
from interp.passes import LOGITS, Pass
from interp.positions import Places, Position

if TYPE_CHECKING:
    from interp.model import HookedModel

Hook = tuple[Names, Callable[..., Tensor | None]]
"""Names of hooks, and the function that is called at each of them."""


@dataclass(frozen=True)
class HookCall:
    """What a hook function is told in its argument `hook`.

    Attributes:
        name: of the hook.
        indices: which texts the rows of the activation are, by their place in the list that was given.
        lengths: how many tokens each of these texts (of a generation: prompts) has.
    """

    name: str
    indices: list[int]
    lengths: list[int]

    def layer(self) -> int:
        """The block, 0-based.

        Raises:
            InputError: the hook belongs to no block.
        """
        if not self.name.startswith("blocks."):
            raise InputError(f"{self.name} belongs to no block")
        return int(self.name.split(".")[1])


@dataclass
class Rowing:
    """Which texts are being computed: told by who runs the model, asked by hook functions."""

    lengths: Sequence[int]
    indices: list[int] = field(default_factory=list)

    def tell(self, indices: Sequence[int]) -> None:
        """The next forward pass computes these texts."""
        self.indices = list(indices)

    def call(self, name: str) -> HookCall:
        """What a function at a hook is told now."""
        return HookCall(name, self.indices, [self.lengths[index] for index in self.indices])


@contextmanager
def installed(model: HookedModel, hooks: Sequence[Hook], rowing: Rowing) -> Iterator[None]:
    """Hook functions, in the order of the list where several stand at one place.

    Raises:
        InputError: a name or filter that no hook matches; in a forward pass, a result of another shape.
    """
    with ExitStack() as stack:
        for names, function in hooks:
            for name in model.hooks.select(names):
                stack.enter_context(model.intervene({name: _adapted(function, name, rowing)}))
        yield


def _adapted(function: Callable[..., Tensor | None], name: str, rowing: Rowing) -> Callable[[Tensor], Tensor]:
    """A function as TransformerLens takes them → one of the activation alone that returns what flows on."""
    told = _takes_hook(function)

    def run(activation: Tensor) -> Tensor:
        own = activation.clone()  # it may be changed in place, and what was captured before must not change with it
        result = function(own, hook=rowing.call(name)) if told else function(own)
        return own if result is None else result

    return run


def _takes_hook(function: Callable[..., Any]) -> bool:
    try:
        return "hook" in inspect.signature(function).parameters
    except (ValueError, TypeError):  # functions of torch have no signature
        return False


@dataclass(frozen=True)
class Prepared:
    """Texts as tokens, and the places that are asked of them."""

    token_ids: list[list[int]]
    places: Places

    @classmethod
    def of(cls, model: HookedModel, texts: str | Sequence[str], position: Position, chat: bool) -> Prepared:
        """Tokenize.

        Raises:
            InputError: no texts; see `HookedModel.token_ids` and `Places.of`.
        """
        texts = as_texts(texts)
        if not texts:
            raise InputError("There are no prompts", "at least one")
        token_ids = model.token_ids(texts, chat)
        return cls(token_ids, Places.of(position, [len(ids) for ids in token_ids]))

    def rowing(self) -> Rowing:
        """Nothing is being computed yet."""
        return Rowing([len(ids) for ids in self.token_ids])

    def cache(self, values: dict[str, Tensor]) -> ActivationCache:
        """What was kept of these texts."""
        return ActivationCache(values, self.places.kept, self.token_ids)


def passes(
    model: HookedModel,
    prepared: Prepared,
    names: Sequence[str],
    batch_size: int | None,
    logits: bool,
    rowing: Rowing | None = None,
    skip: Callable[[list[int]], bool] = lambda _: False,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The forward passes over all texts, longest first: indices, and activations (and "logits") at the places asked.

    Args:
        model: hooks that are open act on every pass.
        prepared: the texts.
        names: hook names.
        batch_size: texts per pass; by default as many as fit a budget of tokens.
        logits: whether they are computed too.
        rowing: told before each pass which texts it computes.
        skip: whether the pass over these texts is left out.
    """
    told = (rowing or prepared.rowing()).tell
    asked = [
        (batch.indices, Pass(batch.inputs, prepared.places.index[batch.indices], names, logits, partial(told, indices)))
        for batch in batches(prepared.token_ids, -1, batch_size, model.device)
        if not skip(indices := batch.indices.tolist())
    ]
    computed = model.run(one for _, one in asked)
    for (which, one), activations in zip(asked, computed, strict=True):
        yield which, {name: prepared.places.squeeze(activations[name]) for name in one.kept}


def run_with_cache(
    model: HookedModel,
    texts: str | Sequence[str],
    names: Names,
    position: Position,
    chat: bool,
    batch_size: int | None,
    logits: bool,
) -> tuple[Tensor | None, ActivationCache]:
    """See `HookedModel.run_with_cache`."""
    prepared = Prepared.of(model, texts, position, chat)
    rows = Rows(prepared.places.kept)
    for indices, activations in passes(model, prepared, model.hooks.select(names), batch_size, logits):
        rows.put(indices, activations)
    return rows.values.pop(LOGITS, None), prepared.cache(rows.values)


def run_with_hooks(
    model: HookedModel,
    texts: str | Sequence[str],
    fwd_hooks: Sequence[Hook],
    position: Position,
    chat: bool,
    batch_size: int | None,
) -> Tensor:
    """See `HookedModel.run_with_hooks`."""
    prepared = Prepared.of(model, texts, position, chat)
    rows, rowing = Rows(prepared.places.kept), prepared.rowing()
    with installed(model, fwd_hooks, rowing):
        for indices, activations in passes(model, prepared, [], batch_size, True, rowing):
            rows.put(indices, activations)
    return rows.values[LOGITS]
