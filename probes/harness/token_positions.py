"""Which tokens of a rendered prompt are the user's words, and which are the template's."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from interp.chat import encode
from interp.errors import InputError


class Position(StrEnum):
    """A class of tokens."""

    START = "start"
    INSTRUCTION = "instruction"
    END = "end"


def position_classes(tokenizer: Any, texts: Sequence[str], instructions: Sequence[str]) -> list[list[Position]]:
    """The class of every token of rendered prompts, as `HookedModel.token_ids` has them.

    The instruction is looked for in the rendered text, whatever the template: its last occurrence (a system prompt may
    repeat it). Before it is START, after it END (end of the template: end of turn and generation prompt). A token that
    holds characters of two classes belongs to the later one that is not END, or to END if it starts there.

    Args:
        tokenizer: a fast one, which tells where a token stands in the text.
        texts: the rendered prompts.
        instructions: what each was rendered from.

    Raises:
        InputError: a tokenizer that knows no offsets; a template that changes the instruction, so that it is not found.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "The tokenizer does not tell which characters a token stands for", "a fast one (tokenizer.json)"
        )
    offsets = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    classes = []
    for text, instruction, spans, ids in zip(texts, instructions, offsets, encode(tokenizer, texts), strict=True):
        start = text.rfind(instruction.strip())
        if start < 0:
            raise InputError(
                f"The request {instruction[:40]!r}… does not stand in its rendered prompt {text[:60]!r}…",
                "a chat template that keeps the user's words",
                "Leave out the experiment that needs them, or give another template",
            )
        end = start + len(instruction.strip())
        spans = spans[-len(ids) :] if len(spans) >= len(ids) else [(0, 0)] * (len(ids) - len(spans)) + list(spans)
        classes.append([_class(first, last, start, end) for first, last in spans])
    return classes


def _class(first: int, last: int, start: int, end: int) -> Position:
    """The class of a token of the characters first … last − 1, the instruction being start … end − 1."""
    if first >= end:
        return Position.END
    return Position.INSTRUCTION if last > start else Position.START
