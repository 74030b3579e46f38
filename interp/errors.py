"""The one error that users are meant to see."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

LONGEST_SENTENCE = 2000
"""Characters; a name, a path or a value in a damaged file can have millions."""
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls, which may be a terminal's commands; signs that turn the direction of writing; halves of surrogate pairs."""


NEAR = 0.6
"""How alike two names must be, by `difflib`, to be offered for each other."""
MOST_NAMES = 5000
NAMES_SHOWN = 6


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
        super().__init__(" ".join(_ended(_printable(s)) for s in sentences if s))


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith("?") else sentence.rstrip(".") + "."


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


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, for an error's last sentence; "" where none is near."""
    close = difflib.get_close_matches(wrong, list(known), n=1, cutoff=NEAR)
    return f"Did you mean {close[0]!r}?" if close else ""


def what_lies_beside(path: Path) -> str:
    """For a path that does not exist: the nearest one beside it, or what its last existing folder holds; "" if nothing.

    Names are read, never files.
    """
    missing = [path, *path.parents]
    try:
        place = next(number for number, folder in enumerate(missing) if folder.is_dir())
        names = sorted(itertools.islice((entry.name for entry in missing[place].iterdir()), MOST_NAMES))
    except (OSError, ValueError, StopIteration):
        return ""
    if place == 0 or not names:
        return ""
    close = difflib.get_close_matches(missing[place - 1].name, names, n=1, cutoff=NEAR)
    if close:
        return f"Did you mean {missing[place] / close[0]}?"
    shown = ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
    return f"{missing[place].absolute()} holds {shown}"


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
