"""The refusal margin of prompts: log-odds that an answer begins with one of the refusal openings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from interp.batching import TEXTS_AT_ONCE, Batch
from interp.errors import InputError, NotFinite
from interp.memory import spare_memory
from interp.model import HookedModel
from interp.passes import LOGITS, Pass
from probes.margin.openings import Openings, Tokens

OTHER_BATCH = 32
"""Prompts of a batch where margins are measured again and one at a time was asked for."""


def refusal_margin(
    model: HookedModel,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    openings: Openings,
) -> Float[Tensor, " batch"]:
    """Log-odds that the answer starts with one of the openings, in nats, float32, differentiable.

    log P − log(1 − P), both as sums over the trie of the openings: P over its leaves, and 1 − P over what leaves it,
    the mass of all other tokens at every inner node; neither is a difference, so both are exact when tiny. With
    openings of one token it is logsumexp(their logits) − logsumexp(the others).

    Open hooks act on it. A forward pass sees the rows as they are, and where openings have several tokens
    [batch, pos + k]: the k tokens stand right after each prompt (one pass per inner path of the trie). Without hooks
    one pass reads all inner nodes of the trie side by side after each prompt, where masks alone say what a token sees.

    Args:
        model: gradients flow to whatever requires them.
        input_ids: prompts; tokens where the mask is 0 are ignored.
        attention_mask: 1 for real tokens; pads on the right, as `interp.batching` makes them, or on the left, which
            are moved to the right.
        openings: of the baseline, for all of its cells.

    Raises:
        InputError: prompt and opening are longer than the context.
    """
    paths = _inner_paths(openings)
    return _over_the_trie(openings, _along(model, input_ids, attention_mask, paths))


def _over_the_trie(openings: Openings, along: Iterable[Float[Tensor, "batch depth vocab"]]) -> Float[Tensor, " batch"]:
    """The margin, of log-probabilities along each inner path in turn."""
    children = _children(openings.sequences)
    reach: dict[Tokens, Tensor] = {}
    leaving: list[Tensor] = []
    for path, log_probabilities in zip(_inner_paths(openings), along, strict=True):
        for depth in range(len(path) + 1):
            node = path[:depth]
            if node not in children:  # seen on an earlier path
                continue
            tokens = torch.tensor(children.pop(node), device=log_probabilities.device)
            at_node = log_probabilities[:, depth]
            here = reach.pop(node) if node else torch.zeros_like(at_node[:, 0])
            leaving.append(here + at_node.index_fill(1, tokens, -torch.inf).logsumexp(1))
            reach |= {(*node, token): here + at_node[:, token] for token in tokens.tolist()}
    return torch.stack(list(reach.values())).logsumexp(0) - torch.stack(leaving).logsumexp(0)


def margins(
    model: HookedModel, texts: Sequence[str], openings: Openings, batch_size: int | None = None
) -> Float[Tensor, " n_texts"]:
    """`refusal_margin` of rendered prompts, on the CPU, without gradients, in the order of the texts.

    Args:
        model: open hooks act on it.
        texts: rendered prompts.
        openings: of the baseline.
        batch_size: prompts per forward pass.

    Raises:
        InputError: no texts; one that is empty or, with an opening, longer than the context.
        NotFinite: a margin is NaN or infinite.
    """
    return MarginRuns.of(model, texts, openings, batch_size).margins(model)


def _children(sequences: Sequence[Tokens]) -> dict[Tokens, list[int]]:
    """Inner nodes of the trie → the tokens that stay in it."""
    children: dict[Tokens, set[int]] = {}
    for tokens in sequences:
        for depth, token in enumerate(tokens):
            children.setdefault(tokens[:depth], set()).add(token)
    return {node: sorted(tokens) for node, tokens in children.items()}


def _paths(nodes: Iterable[Tokens]) -> list[Tokens]:
    """Inner nodes that begin no other: paths to these pass all others."""
    ordered = sorted(nodes)
    following = [*ordered[1:], ()]
    return [node for node, after in zip(ordered, following, strict=True) if after[: len(node)] != node or not after]


def _inner_paths(openings: Openings) -> list[Tokens]:
    """A path for each forward pass."""
    return _paths(_children(openings.sequences))


def other_batch_size(batch_size: int | None) -> int:
    """Prompts per pass where margins are measured again, to see what the model's own arithmetic leaves unsure."""
    return 1 if batch_size != 1 else OTHER_BATCH


def _along(
    model: HookedModel,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    paths: Sequence[Tokens],
) -> Iterator[Float[Tensor, "batch depth vocab"]]:
    """Log-probabilities of the next token after each prompt, and after each token of a path that follows it."""
    longest = max(map(len, paths))
    _check_context(model, int(attention_mask.sum(1).max()) + longest)
    prompts = _right_padded(input_ids, attention_mask)
    several = len(paths) > 1
    if several and _can_be_side_by_side(model, input_ids.shape[1] + longest):
        yield from _side_by_side(model, *prompts, paths)
        return
    for path in paths:
        yield _forgetting(several, _teacher_forced, model, *prompts, path)


def _right_padded(
    input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    """The prompts with their pads on the right, and their lengths."""
    order = attention_mask.argsort(dim=1, descending=True, stable=True)  # real tokens first, in their order
    return input_ids.gather(1, order), attention_mask.sum(1)


def in_one_pass(model: HookedModel, width: int, openings: Openings) -> bool:
    """Whether `refusal_margin` takes one forward pass.

    Args:
        model: as it is now, hooks included.
        width: of the batch.
        openings: of the baseline.
    """
    paths = _inner_paths(openings)
    return len(paths) == 1 or _can_be_side_by_side(model, width + max(map(len, paths)))


def _can_be_side_by_side(model: HookedModel, length: int) -> bool:
    """Whether all paths can follow the prompts in one pass.

    Hooks are promised the rows as they are, layers with a window shorter than a row have masks of their own, and a
    recurrence reads a row from left to right, whatever the mask.
    """
    from transformers import DynamicCache

    own = set() if model.streamed is None else model.streamed.slot.hooks
    hooks = (hook for module in model.hf.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks))
    if model.architecture.recurrence is not None or any(hook not in own for hook in hooks):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(getattr(layer, "sliding_window", length) >= length for layer in layers)


def _prompts_at_once(model: HookedModel, openings: Openings) -> int:
    """Prompts whose logits, after each of them and each token of an opening, fit beside the model twice."""
    vocabulary = model.hf.get_output_embeddings().weight.shape[0]
    return max(1, spare_memory(model) // (2 * (following_tokens(openings) + 1) * vocabulary * 4))


def following_tokens(openings: Openings) -> int:
    """Tokens that stand after each prompt in a pass over all paths side by side."""
    return len(_inner_tokens(_children(openings.sequences)))


def _inner_tokens(paths: Iterable[Tokens]) -> list[Tokens]:
    """The nodes of the trie that have a token and tokens after it, each once, parents first."""
    return sorted({path[:depth] for path in paths for depth in range(1, len(path) + 1)})


def _side_by_side(
    model: HookedModel, prompts: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"], paths: Sequence[Tokens]
) -> Iterator[Float[Tensor, "batch depth vocab"]]:
    """`_teacher_forced` along all paths in one pass: a token sees the prompt and those before it on its own path."""
    nodes = _inner_tokens(paths)
    width = prompts.shape[1]
    ids = torch.cat([prompts, prompts.new_tensor([node[-1] for node in nodes]).expand(len(prompts), -1)], dim=1)
    after = lengths[:, None] - 1 + lengths.new_tensor([len(node) for node in nodes])
    positions = torch.cat([torch.arange(width).to(prompts).expand_as(prompts), after], dim=1)
    unseen = ~_seen(lengths, width, nodes)
    mask = torch.zeros(unseen.shape, dtype=model.hf.dtype, device=ids.device)
    mask = mask.masked_fill(unseen, torch.finfo(mask.dtype).min)
    asked = torch.cat([lengths[:, None] - 1, torch.arange(width, ids.shape[1]).to(lengths).expand(len(ids), -1)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    log_probabilities = _read(model, Pass(inputs, asked, logits=True))
    place = {node: number for number, node in enumerate([(), *nodes])}
    for path in paths:
        yield log_probabilities[:, [place[path[:depth]] for depth in range(len(path) + 1)]]


def _seen(
    lengths: Int[Tensor, " batch"], width: int, nodes: Sequence[Tokens]
) -> Bool[Tensor, "batch 1 position position"]:
    """What each position attends to: prompts as always, a node to the prompt and to the nodes that begin it."""
    n = width + len(nodes)
    seen = torch.zeros(len(lengths), 1, n, n, dtype=torch.bool, device=lengths.device)
    seen[..., :width, :width] = torch.ones(width, width, dtype=torch.bool, device=lengths.device).tril()
    seen[..., width:, :width] = (torch.arange(width).to(lengths) < lengths[:, None])[:, None, None]
    begun = [[node[: len(other)] == other for other in nodes] for node in nodes]
    seen[..., width:, width:] = torch.tensor(begun, device=lengths.device)
    return seen


def _forgetting(several: bool, passing: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Let only one of several differentiated passes hold its activations at a time: each is computed again."""
    if not several or not torch.is_grad_enabled():
        return passing(*arguments)
    return checkpoint(passing, *arguments, use_reentrant=False, preserve_rng_state=False)


def _teacher_forced(
    model: HookedModel, prompts: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"], path: Tokens
) -> Float[Tensor, "batch depth vocab"]:
    """`_along` one path, in one pass over the prompts and the path after them."""
    return _read(model, _forced(prompts, lengths, path))


def _read(model: HookedModel, one: Pass) -> Float[Tensor, "batch depth vocab"]:
    """The log-probabilities at the places that a pass keeps."""
    with model.unembed_only(one.take):
        return _log_probabilities(model.hf(**one.inputs, use_cache=False).logits)


def _log_probabilities(logits: Float[Tensor, "batch depth vocab"]) -> Float[Tensor, "batch depth vocab"]:
    return logits.float().log_softmax(-1)


def _forced(prompts: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"], path: Tokens) -> Pass:
    """The pass over prompts and the path after them, of which the logits after prompt and path are kept."""
    ids = torch.cat([prompts, prompts.new_zeros(len(prompts), len(path))], dim=1)
    after = lengths[:, None] + torch.arange(len(path), device=lengths.device)
    ids.scatter_(1, after, ids.new_tensor(path).expand(len(ids), -1))
    columns = torch.arange(ids.shape[1], device=ids.device)
    mask = (columns < lengths[:, None] + len(path)).to(lengths.dtype)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": columns.expand_as(ids)}
    return Pass(inputs, lengths[:, None] - 1 + torch.arange(len(path) + 1, device=lengths.device), logits=True)


def _check_context(model: HookedModel, length: int) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise InputError(
            f"A prompt and the beginning of a refusal have {length} tokens",
            f"at most {context}, the model's context",
            "Shorten the prompt or leave it out",
        )


ActivationEdit = Callable[[Tensor], Tensor]
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
        cls,
        model: HookedModel,
        texts: Sequence[str],
        openings: Openings,
        batch_size: int | None = None,
        budget: int | None = None,
    ) -> MarginRuns:
        """Prepare rendered prompts.

        Args:
            model: whose tokens and memory decide on the batches.
            texts: rendered prompts.
            openings: of the baseline.
            batch_size: prompts per pass; by default as many as a budget of tokens and of logits allows.
            budget: tokens of a pass.

        Raises:
            InputError: no texts; one that is empty, or too long for the context with the longest opening.
        """
        at_most = min(TEXTS_AT_ONCE, _prompts_at_once(model, openings))
        then = max(map(len, openings.sequences)) - 1
        prompts = model.batches(texts, batch_size=batch_size, at_most=at_most, budget=budget, then=then)
        return cls(len(texts), tuple(prompts), openings)

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
        values = torch.empty(self.n)
        together = around is None and model.streamed is not None
        for batch, margin in zip(
            self.batches, self._together(model) if together else self._in_turn(model, around), strict=True
        ):
            values[batch.indices] = margin.cpu()
        if not torch.isfinite(values).all():
            raise NotFinite("The refusal margin holds NaN or infinity", do="Load the model with dtype=torch.float32")
        return values

    def passes(self, model: HookedModel) -> list[Pass]:
        """The forward passes of all margins, batch by batch, each over whole prompts.

        Args:
            model: the one that will compute them.

        Raises:
            InputError: prompt and opening are longer than the context.
        """
        paths = _inner_paths(self.openings)
        prompts = [_right_padded(batch.inputs["input_ids"], batch.inputs["attention_mask"]) for batch in self.batches]
        _check_context(model, max(int(lengths.max()) for _, lengths in prompts) + max(map(len, paths)))
        return [_forced(ids, lengths, path) for ids, lengths in prompts for path in paths]

    def _together(self, model: HookedModel) -> Iterator[Float[Tensor, " batch"]]:
        """The margins of each batch, from passes that go through the model together."""
        computed = (_log_probabilities(kept[LOGITS]) for kept in model.run(self.passes(model)))
        for _ in self.batches:
            yield _over_the_trie(self.openings, islice(computed, len(_inner_paths(self.openings))))

    def _in_turn(
        self, model: HookedModel, around: Callable[[int], AbstractContextManager[Any]] | None
    ) -> Iterator[Float[Tensor, " batch"]]:
        """The margins of each batch, one after the other."""
        for number, batch in enumerate(self.batches):
            with torch.no_grad(), nullcontext() if around is None else around(number):
                ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
                margin = refusal_margin(model, ids, mask, self.openings)
            yield margin

    def record(self, model: HookedModel, sites: Sequence[str]) -> Recording:
        """The activations at all positions of all prompts, in the model's dtype, where they are computed.

        A margin may take several forward passes per batch (openings of several tokens): all are recorded. Memory: the
        number of prompts × their length × the widths of the sites.

        Args:
            model: the one whose activations will be put into another.
            sites: hook names, or names of linears for their outputs.
        """
        recording: Recording = [{site: [] for site in sites} for _ in self.batches]

        def keep(number: int, site: str) -> ActivationEdit:
            def see(activation: Tensor) -> Tensor:
                recording[number][site].append(activation.clone())
                return activation

            return see

        self.margins(model, lambda number: changed(model, {site: keep(number, site) for site in sites}))
        return recording


def replayed(recording: Recording, number: int, site: str, put: Callable[[Tensor, Tensor], Tensor]) -> ActivationEdit:
    """A change that is given, forward pass by forward pass, what was recorded: put(own activation, recorded one)."""
    passes = iter(recording[number][site])
    return lambda activation: put(activation, next(passes))


@contextmanager
def accompanied(target: HookedModel, source: HookedModel, sites: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Before each forward pass of `target` inside, `source` reads the same; what it has at `sites` is held until then.

    Memory: the activations of one pass, where `record` holds those of all prompts and passes.

    Args:
        target: the model whose passes are accompanied.
        source: another one of its shapes.
        sites: hook names, or names of linears for their outputs.

    Yields:
        Site → the activation of `source` in the pass that `target` is in; who needs it takes it out.
    """
    activations: dict[str, Tensor] = {}

    def keep(site: str, activation: Tensor) -> Tensor:
        activations[site] = activation.clone()
        return activation

    def read_first(_: Any, arguments: Any, named: Any) -> None:
        activations.clear()
        with (
            torch.no_grad(),
            changed(source, {site: partial(keep, site) for site in sites}),
            source.unembed_only(lambda hidden: hidden[:, :1]),
        ):
            source.hf(*arguments, **named)

    handle = target.hf.register_forward_pre_hook(read_first, with_kwargs=True)
    try:
        yield activations
    finally:
        handle.remove()


@contextmanager
def changed(model: HookedModel, changes: Mapping[str, ActivationEdit]) -> Iterator[None]:
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
