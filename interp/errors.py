"""The one error that users are meant to see."""

from __future__ import annotations

import re

LONGEST_SENTENCE = 2000
"""Characters; a name, a path or a value in a damaged file can have millions."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, which may be a terminal's commands; signs that turn the direction of writing; halves of surrogate pairs."""


class InputError(ValueError):
    """Something given from outside (a path, a file, a tensor, a prompt set) cannot be used.

    The message is one paragraph: what was found and where, what was expected, and what to do. Commands print it without
    a traceback and exit with code 2.

    Args:
        found: what is wrong, naming the file and the tensor or line.
        expected: what would have been right.
        do: what the user can do about it.
    """

    def __init__(self, found: str, expected: str = "", do: str = "") -> None:
        sentences = [found, f"Expected {expected}" if expected else "", do]
        super().__init__(" ".join(_printable(s).rstrip(".") + "." for s in sentences if s))


def _printable(sentence: str) -> str:
    """Names and values from files as any terminal can show them, and no longer than anybody reads; lines stay lines."""
    shown = "\n".join(map(_shortened, sentence.split("\n")))
    return _UNPRINTABLE.sub(lambda sign: sign[0].encode("unicode_escape").decode(), shown)


def _shortened(sentence: str) -> str:
    """Without its middle where it is too long: what was found stands in front, and where it was often at the end."""
    if len(sentence) <= LONGEST_SENTENCE:
        return sentence
    half = LONGEST_SENTENCE // 2
    return f"{sentence[:half]} … {sentence[-half:]}"


class Unmeasurable(InputError):
    """A model of which no number would mean anything. Probes over several cells go on with the others."""


class NotFinite(Unmeasurable):
    """A model computed NaN or infinity."""


class SaysNothing(Unmeasurable):
    """A model's logits are the same for all tokens."""


class MissingExtra(InputError):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            do=f'Install it with: pip install "quantscope[{extra}]"',
        )
