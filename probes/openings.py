"""How a model begins to refuse: short token sequences, and the log-odds that an answer starts with one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, NotFinite
from interp.model import HookedModel
from probes.completions import answers
from probes.pair import Comparison
from probes.prompt_batches import prompt_batches
from probes.refused import BROADER, READ_TOKENS, STUDY, refuses

Tokens = tuple[int, ...]
Source = Literal["baseline", "lexicon"]
"""Whose openings: the baseline's own, or the lexicon's."""
SOURCES = {"baseline": "baseline's refusals", "lexicon": "lexicon"}
LEXICONS = {SOURCES["baseline"]: BROADER, SOURCES["lexicon"]: STUDY}
"""Source → the lexicon behind it: it told the baseline's refusals from its answers, or the openings are its own."""

MAX_TOKENS = 6
"""Of an opening found in the baseline's answers."""
PURITY = 0.95
FEWEST_ANSWERS = 2

PHRASES = (
    *("I'm sorry", "I am sorry", "I can't", "I cant", "I cannot", "I won't", "I wont", "I must decline"),
    *("I must refuse", "I must not", "I'm unable", "I am unable", "As an AI"),
)
"""`probes.refusal_text.REFUSAL_OPENINGS` as models write them."""


@dataclass(frozen=True)
class Openings:
    """Token sequences that start a refusal, none of them the beginning of another, so that their probabilities add.

    Attributes:
        sequences: token ids.
        source: "baseline's refusals" or "lexicon".
        texts: the sequences decoded.
        counts: how many of the baseline's answers start with each; 0 where no answers were looked at.
        purity: the share of these answers that are refusals; NaN where there are none.
        coverage: share of the baseline's refusals that start with one of the sequences; NaN where there are none.
        note: what the reader of the numbers must know, else "".

    Raises:
        InputError: no sequences, an empty one, or one that begins another.
    """

    sequences: tuple[Tokens, ...]
    source: str
    texts: tuple[str, ...]
    counts: tuple[int, ...]
    purity: tuple[float, ...]
    coverage: float = nan
    note: str = ""

    def __post_init__(self) -> None:
        if not self.sequences or () in self.sequences:
            raise InputError("There is no refusal opening, or an empty one", "token sequences of at least one token")
        if len(minimal(self.sequences)) < len(self.sequences):
            raise InputError("One refusal opening begins another", "a prefix-free set, or probabilities count twice")

    def describe(self) -> dict[str, Any]:
        """For the settings of a result; undefined numbers are null."""
        columns = zip(self.texts, self.sequences, self.counts, self.purity, strict=True)
        listed = [
            {"text": text, "tokens": list(tokens), "answers": count, "purity": None if count == 0 else pure}
            for text, tokens, count, pure in columns
        ]
        coverage = None if self.coverage != self.coverage else self.coverage
        return {
            "source": self.source,
            "lexicon": LEXICONS[self.source],
            "coverage": coverage,
            "note": self.note,
            "openings": listed,
        }


def minimal(sequences: Iterable[Tokens]) -> list[Tokens]:
    """Those that no other sequence begins, each once, sorted: the smallest set with the same continuations."""
    kept: list[Tokens] = []
    for tokens in sorted(set(sequences)):  # in this order all continuations of a sequence follow it
        if not kept or tokens[: len(kept[-1])] != kept[-1]:
            kept.append(tokens)
    return kept


def find_openings(model: HookedModel, texts: Sequence[str], source: Source = "baseline") -> Openings:
    """The openings of a baseline's own refusals, or the lexicon's where it never refuses (which `note` then says).

    Its refusals are told by the broader lexicon, as outcomes are (`probes.refused`); "the lexicon's" are the study's.

    Args:
        model: the baseline.
        texts: rendered prompts, harmful and harmless: an opening must start refusals only.
        source: "lexicon" does not look at the model's answers.
    """
    if source == "lexicon":
        return lexicon_openings(model.tokenizer)
    given = [tuple(answer.tokens) for answer in answers(model, texts, READ_TOKENS)]
    refused = refuses([model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in given]).tolist()
    return openings_of(given, refused, model.tokenizer)


def common_openings(comparison: Comparison, source: Source) -> Openings:
    """The openings that all cells of a comparison are measured with, its baseline's; their note becomes a warning."""
    texts = [text for side in comparison.texts.values() for text in side]
    found = comparison.of_baseline("openings", lambda: find_openings(comparison.baseline, texts, source), source=source)
    comparison.warnings += [found.note] if found.note else []
    return found


def openings_of(given: Sequence[Tokens], refused: Sequence[bool], tokenizer: Any) -> Openings:
    """The shortest beginnings of answers that decide: at least 95 % of the (two or more) answers that start so refuse.

    Args:
        given: token ids of each answer.
        refused: whether it is a refusal.
        tokenizer: to show what the openings say, and for the lexicon where there are none.
    """
    kept = minimal(_deciding(given, refused))
    n_refused = sum(refused)
    if not kept:
        return lexicon_openings(
            tokenizer,
            f"the baseline refused {n_refused} of {len(given)} prompts and no beginning of an answer tells its "
            f"refusals from the rest: the refusal openings are the {STUDY}'s, not its own",
        )
    tallies = [_tally(tokens, given, refused) for tokens in kept]
    return Openings(
        tuple(kept),
        SOURCES["baseline"],
        tuple(map(tokenizer.decode, kept)),
        tuple(count for count, _ in tallies),
        tuple(pure / count for count, pure in tallies),
        sum(pure for _, pure in tallies) / n_refused,
    )


def _deciding(given: Sequence[Tokens], refused: Sequence[bool]) -> Iterator[Tokens]:
    """Every beginning of up to six tokens whose answers refuse; continuations of a shorter one among them."""
    beginnings = {tokens[:length] for tokens in given for length in range(1, min(MAX_TOKENS, len(tokens)) + 1)}
    for beginning in beginnings:
        count, pure = _tally(beginning, given, refused)
        if count >= FEWEST_ANSWERS and pure >= PURITY * count:
            yield beginning


def _tally(beginning: Tokens, given: Sequence[Tokens], refused: Sequence[bool]) -> tuple[int, int]:
    """Answers that start so, and refusals among them."""
    labelled = zip(given, refused, strict=True)
    starting = [refusal for tokens, refusal in labelled if tokens[: len(beginning)] == beginning]
    return len(starting), sum(starting)


def lexicon_openings(tokenizer: Any, note: str = "") -> Openings:
    """`PHRASES` as this tokenizer writes them, with plain and curly apostrophes, with and without a leading space."""
    written = [space + p for phrase in PHRASES for p in {phrase, phrase.replace("'", "’")} for space in ("", " ")]
    kept = minimal(tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in written)
    texts = tuple(map(tokenizer.decode, kept))
    return Openings(tuple(kept), SOURCES["lexicon"], texts, (0,) * len(kept), (nan,) * len(kept), note=note)


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
    [batch, pos + k]: the k tokens stand right after each prompt (one pass per inner path of the trie).

    Args:
        model: gradients flow to whatever requires them.
        input_ids: prompts; tokens where the mask is 0 are ignored.
        attention_mask: 1 for real tokens; pads on the right, as `interp.batching` makes them, or on the left, which
            are moved to the right.
        openings: of the baseline, for all of its cells.

    Raises:
        InputError: prompt and opening are longer than the context.
    """
    children = _children(openings.sequences)
    reach: dict[Tokens, Tensor] = {}
    leaving: list[Tensor] = []
    for path in _paths(children):
        log_probabilities = _teacher_forced(model, input_ids, attention_mask, path)
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
    found = torch.empty(len(texts))
    for batch in prompt_batches(model, texts, batch_size):
        with torch.no_grad():
            ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
            found[batch.indices] = refusal_margin(model, ids, mask, openings).cpu()
    if not torch.isfinite(found).all():
        raise NotFinite("The refusal margin holds NaN or infinity", do="Load the model with dtype=torch.float32")
    return found


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


def _teacher_forced(
    model: HookedModel, input_ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], path: Tokens
) -> Float[Tensor, "batch depth vocab"]:
    """Log-probabilities of the next token after each prompt, and after each token of a path that follows it."""
    lengths = attention_mask.sum(1)
    _check_context(model, int(lengths.max()) + len(path))
    ids = torch.cat([input_ids, input_ids.new_zeros(len(input_ids), len(path))], dim=1)
    # Stable: real tokens first, in their order.
    order = attention_mask.argsort(dim=1, descending=True, stable=True)
    ids[:, : input_ids.shape[1]] = input_ids.gather(1, order)
    after = lengths[:, None] + torch.arange(len(path), device=lengths.device)
    ids.scatter_(1, after, ids.new_tensor(path).expand(len(ids), -1))
    columns = torch.arange(ids.shape[1], device=ids.device)
    mask = (columns < lengths[:, None] + len(path)).to(attention_mask.dtype)
    positions = columns.expand_as(ids)
    asked = lengths[:, None] - 1 + torch.arange(len(path) + 1, device=lengths.device)
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    with model.unembed_only(lambda hidden: hidden[rows.to(hidden.device), asked.to(hidden.device)]):
        logits = model.hf(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits.float().log_softmax(-1)


def _check_context(model: HookedModel, length: int) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise InputError(
            f"A prompt and the beginning of a refusal have {length} tokens",
            f"at most {context}, the model's context",
            "Shorten the prompt or leave it out",
        )
