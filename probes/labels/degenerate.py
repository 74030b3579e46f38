"""Text that is no answer at all: empty, garbage, or a loop."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

NGRAM = 4
"""Tokens of the n-grams whose repetition is counted."""
LOOP_REPEATS = 4
"""How often in a row a unit must come to be a loop."""
LOOP_SHARE = 0.5
"""The share of the text that a loop must fill to make it degenerate."""
SHORTEST_SENTENCE = 5
"""Words; a loop of fewer is stuttering, a loop of more is a sentence said again and again."""
_MARKUP = frozenset("*_#>~`|")
_LONGEST_UNIT = 40
_READABLE_SHARE = 0.3
_DAMAGED_SHARE = 0.1
_LONGEST_WORD = 200


def repetition_rate(text: str) -> float:
    """Share of a text's 4-grams (white-space words) that it has had before; NaN for fewer than four words.

    1 − distinct / all, "rep-4" of Welleck et al. 2020, arXiv:1908.04319, section 4.1.
    """
    words = text.split()
    ngrams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else float("nan")


def looping_unit(tokens: Sequence[str]) -> int | None:
    """Length of the shortest unit that fills half of the text by coming four times or more in a row; None without one.

    The last unit may be cut off, as it is where generation stopped.
    """
    for unit in range(1, min(_LONGEST_UNIT, len(tokens) // LOOP_REPEATS) + 1):
        longest = _longest_run([tokens[i] == tokens[i + unit] for i in range(len(tokens) - unit)]) + unit
        if longest >= LOOP_REPEATS * unit and longest >= LOOP_SHARE * len(tokens):
            return unit
    return None


def _longest_run(flags: Sequence[bool]) -> int:
    best = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        best = max(best, current)
    return best


def is_garbage(text: str) -> bool:
    """Nothing to read: no letters or digits, control or undecodable characters throughout, or one endless word.

    Marks of Markdown are not counted: "**No.**" is a word.
    """
    characters = [character for character in text if not character.isspace() and character not in _MARKUP]
    if not characters:
        return True
    readable = sum(unicodedata.category(character)[0] in "LN" for character in characters)
    damaged = sum(character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn") for character in characters)
    return (
        readable < _READABLE_SHARE * len(characters)
        or damaged > _DAMAGED_SHARE * len(characters)
        or max((len(word) for word in text.split() if word.isascii()), default=0) > _LONGEST_WORD
    )


def is_stuttering(text: str) -> bool:
    """A loop of fewer than five words, or, in text written without spaces, of characters."""
    words = text.split()
    unit = looping_unit(words)
    if unit is not None:
        return unit < SHORTEST_SENTENCE
    longest = max(words, key=len, default="")
    return (
        len(longest) >= LOOP_SHARE * len(text) and len(longest) > 2 * LOOP_REPEATS and looping_unit(longest) is not None
    )


def is_loop(text: str) -> bool:
    """A loop of any unit up to forty words, or of characters in text written without spaces."""
    return looping_unit(text.split()) is not None or is_stuttering(text)
