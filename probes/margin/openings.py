"""How a model begins to refuse: short token sequences, and the log-odds that an answer starts with one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from jaxtyping import Bool

from interp.errors import InputError
from interp.generation import Answer, answers
from interp.model import HookedModel
from probes.harness.comparison import Comparison
from probes.harness.pieces import kept
from probes.labels.refused import BROADER, READ_TOKENS, STUDY, refuses
from probes.margin.settings import SOURCES, Source

Tokens = tuple[int, ...]
LEXICONS = {SOURCES["baseline"]: BROADER, SOURCES["lexicon"]: STUDY}
"""Source → the lexicon behind it: it told the baseline's refusals from its answers, or the openings are its own."""

MAX_TOKENS = 6
"""The longest opening that is looked for in the baseline's answers."""
PURITY = 0.95
FEWEST_ANSWERS = 2

PHRASES = (
    *("I'm sorry", "I am sorry", "I can't", "I cant", "I cannot", "I won't", "I wont", "I must decline"),
    *("I must refuse", "I must not", "I'm unable", "I am unable", "As an AI"),
)
"""`probes.labels.study_lexicon.REFUSAL_OPENINGS` as models write them."""


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
    shortest: list[Tokens] = []
    for tokens in sorted(set(sequences)):  # in this order all continuations of a sequence follow it
        if not shortest or tokens[: len(shortest[-1])] != shortest[-1]:
            shortest.append(tokens)
    return shortest


def find_openings(
    model: HookedModel, texts: Sequence[str], source: Source = "baseline", answered: Sequence[Answer] | None = None
) -> Openings:
    """The openings of a baseline's own refusals, or the lexicon's where it never refuses (which `note` then says).

    Its refusals are told by the broader lexicon, as outcomes are (`probes.labels.refused`); "the lexicon's" are the
    study's.

    Args:
        model: the baseline.
        texts: rendered prompts, harmful and harmless: an opening must start refusals only.
        source: "lexicon" does not look at the model's answers.
        answered: what the model generates, up to `READ_TOKENS` tokens each, where that is known.
    """
    if source == "lexicon":
        return lexicon_openings(model.tokenizer)
    read = answered or answers(model, texts, READ_TOKENS)
    return openings_of([tuple(answer.tokens) for answer in read], _refused(model, read).tolist(), model.tokenizer)


def refuses_in(model: HookedModel, texts: Sequence[str]) -> Bool[np.ndarray, " n_texts"]:
    """Whether a model refuses each rendered prompt, by the broader lexicon and the first `READ_TOKENS` tokens."""
    return _refused(model, answers(model, texts, READ_TOKENS))


def _refused(model: HookedModel, answered: Sequence[Answer]) -> Bool[np.ndarray, " n"]:
    return refuses([model.tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answered])


def common_openings(comparison: Comparison, source: Source) -> Openings:
    """The openings that all cells of a comparison are measured with, its baseline's; their note becomes a warning."""
    model, texts = comparison.baseline, [text for side in comparison.texts.values() for text in side]

    def find() -> Openings:
        return find_openings(model, texts, source, None if source == "lexicon" else baseline_answers(comparison))

    with comparison.pieces_of(None):
        refusal_openings = comparison.of_baseline(
            "openings", lambda: kept(["openings", source], find, [Openings]), source=source
        )
    comparison.warnings += [refusal_openings.note] if refusal_openings.note else []
    return refusal_openings


def baseline_answers(comparison: Comparison) -> list[Answer]:
    """What the baseline answers to all harmful, then all harmless prompts, the first `READ_TOKENS` tokens each."""
    texts = [text for side in comparison.texts.values() for text in side]
    return comparison.of_baseline("answers read", lambda: answers(comparison.baseline, texts, READ_TOKENS))


def baseline_refusals(comparison: Comparison, source: Source) -> dict[str, Bool[np.ndarray, " n"]] | None:
    """Which prompts of each side the baseline refuses; None with the lexicon's openings, which ask for no answers."""
    if source == "lexicon":
        return None
    with comparison.pieces_of(None):
        refused = kept(
            ["baseline's refusals"], lambda: _refused(comparison.baseline, baseline_answers(comparison)).tolist()
        )
    sides, counts = list(comparison.texts), [len(texts) for texts in comparison.texts.values()]
    return dict(zip(sides, np.split(np.array(refused, dtype=bool), np.cumsum(counts)[:-1]), strict=True))


def openings_of(given: Sequence[Tokens], refused: Sequence[bool], tokenizer: Any) -> Openings:
    """The shortest beginnings of answers that decide: at least 95 % of the (two or more) answers that start so refuse.

    Args:
        given: token ids of each answer.
        refused: whether it is a refusal.
        tokenizer: to show what the openings say, and for the lexicon where there are none.
    """
    shortest = minimal(_deciding(given, refused))
    n_refused = sum(refused)
    if not shortest:
        return lexicon_openings(
            tokenizer,
            f"the baseline refused {n_refused} of {len(given)} prompts and no beginning of an answer tells its "
            f"refusals from the rest: the refusal openings are the {STUDY}'s, not its own",
        )
    tallies = [_tally(tokens, given, refused) for tokens in shortest]
    return Openings(
        tuple(shortest),
        SOURCES["baseline"],
        tuple(map(tokenizer.decode, shortest)),
        tuple(count for count, _ in tallies),
        tuple(pure / count for count, pure in tallies),
        sum(pure for _, pure in tallies) / n_refused,
    )


def _deciding(answer_tokens: Sequence[Tokens], refused: Sequence[bool]) -> Iterator[Tokens]:
    """Every beginning of up to six tokens whose answers refuse; continuations of a shorter one among them."""
    beginnings = {tokens[:length] for tokens in answer_tokens for length in range(1, min(MAX_TOKENS, len(tokens)) + 1)}
    for beginning in beginnings:
        count, pure = _tally(beginning, answer_tokens, refused)
        if count >= FEWEST_ANSWERS and pure >= PURITY * count:
            yield beginning


def _tally(beginning: Tokens, answer_tokens: Sequence[Tokens], refused: Sequence[bool]) -> tuple[int, int]:
    """Answers that start so, and refusals among them."""
    labelled = zip(answer_tokens, refused, strict=True)
    starting = [refusal for tokens, refusal in labelled if tokens[: len(beginning)] == beginning]
    return len(starting), sum(starting)


def lexicon_openings(tokenizer: Any, note: str = "") -> Openings:
    """`PHRASES` as this tokenizer writes them, with plain and curly apostrophes, with and without a leading space."""
    written = [space + p for phrase in PHRASES for p in {phrase, phrase.replace("'", "’")} for space in ("", " ")]
    shortest = minimal(tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in written)
    texts = tuple(map(tokenizer.decode, shortest))
    return Openings(tuple(shortest), SOURCES["lexicon"], texts, (0,) * len(shortest), (nan,) * len(shortest), note=note)
