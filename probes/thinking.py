"""What a model thinks before it answers, taken out of its text."""

from __future__ import annotations

from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Thought(NamedTuple):
    """A completion in its two parts.

    Attributes:
        thinking: without its tags; "" where there is none.
        answer: what a user reads; "" where the completion was cut while thinking.
    """

    thinking: str
    answer: str


def split_thinking(prompt: str, completion: str) -> Thought:
    """Take the leading `<think>…</think>` out of a completion; some templates open it at the end of the prompt.

    Only what stands first is thinking: the same tags later in an answer are text.
    """
    if prompt.rstrip().endswith(OPEN):
        opened, text = True, completion
    else:
        text = completion.lstrip()
        opened = text.startswith(OPEN)
        text = text.removeprefix(OPEN) if opened else completion
    if not opened:
        return Thought("", completion)
    thinking, _, answer = text.partition(CLOSE)
    return Thought(thinking.strip(), answer.lstrip())
