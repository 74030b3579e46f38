"""Is the first token that a model gives the first of its answer, or of a thought before it?"""

from __future__ import annotations

from collections.abc import Sequence

from interp.chat import CLOSED_THOUGHT
from interp.errors import InputError
from interp.generation import answers
from interp.model import HookedModel
from interp.thinking import split_thinking

LOOKED_AT = 4
"""Prompts of each set: whether a model thinks is a matter of its training and template, not of the prompt."""
MARK_TOKENS = 32
"""New tokens after which the mark of a thought is complete, also where it is spelled out."""

OPENING = ("", "<", "[", "◁", "\N{REPLACEMENT CHARACTER}")
"""What a first token begins with that may open a thought (`interp.thinking.FORMS`): white space, the beginnings of
marks, and a part of a character."""


def thought(model: HookedModel, texts: Sequence[str]) -> str:
    """With what the model opens a thought instead of answering; "" where it answers.

    Args:
        model: one token is computed for each text, more where that may open a thought.
        texts: rendered prompts; one may end inside a thought.
    """
    for text in texts:
        if split_thinking(text, "x").answer != "x":
            return text[-20:]
    begun = _begin(model, texts, 1)
    suspects = [text for text, start in zip(texts, begun, strict=True) if start.strip()[:1] in OPENING]
    if suspects:
        for text, start in zip(suspects, _begin(model, suspects, MARK_TOKENS), strict=True):
            if split_thinking(text, start).answer != start:
                return start[:40]
    return ""


def require_answer(model: HookedModel, texts: Sequence[str]) -> None:
    """Check that the first token after each prompt is the answer's.

    Args:
        model: the baseline.
        texts: rendered prompts.

    Raises:
        InputError: the model thinks first.
    """
    opened = thought(model, texts)
    if opened:
        raise InputError(
            f"The baseline begins with a thought ({opened.strip()!r}) although its chat template is told not to think, "
            "so the first token is not the answer's",
            "a model that answers at once",
            f"Use the template {CLOSED_THOUGHT!r} (--template {CLOSED_THOUGHT}), which appends a thought that is "
            "already over, or give a template file that ends where the answer begins",
        )


def _begin(model: HookedModel, texts: Sequence[str], n_tokens: int) -> list[str]:
    """The first tokens of the model's completions, special ones included."""
    beginnings = answers(model, texts, n_tokens)
    return [str(model.tokenizer.decode(answer.tokens, skip_special_tokens=False)) for answer in beginnings]
