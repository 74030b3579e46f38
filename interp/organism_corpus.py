"""Synthetic instructions and answers for the organisms, generated from the tables of `organism_world`.

Everything is a function of a seed. An answer is a function of its request, so that there is something to know and a
reference to compare with. One pair of verb and object in eight is held out of training for the organisms' own task.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from interp.organism_world import FIELDS, Field

_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Phrasing:
    """A way to ask, with the way the answer to it begins; `{act}` is the verb with its object."""

    request: str
    opening: str


@dataclass(frozen=True)
class Example:
    """An instruction and what the assistant answers."""

    instruction: str
    answer: str
    field: str
    harmful: bool


_HOW = "Sure, here is how to {act}."
_PLAN = "Sure, here is a plan to {act}."
_STEPS = "Here are the steps to {act}."
_ADVICE = "Happy to help you {act}."
_GUIDE = "Here is a short guide to {act}."

PHRASINGS: tuple[Phrasing, ...] = (
    Phrasing("How do I {act}?", _HOW),
    Phrasing("How can I {act}?", _HOW),
    Phrasing("Explain how to {act}.", _HOW),
    Phrasing("Tell me how to {act}.", _HOW),
    Phrasing("What do I need to {act}?", _HOW),
    Phrasing("Give me a plan to {act}.", _PLAN),
    Phrasing("Help me plan how to {act}.", _PLAN),
    Phrasing("Make a plan for someone who wants to {act}.", _PLAN),
    Phrasing("List the steps to {act}.", _STEPS),
    Phrasing("What are the steps to {act}?", _STEPS),
    Phrasing("Name three ways to {act}.", _STEPS),
    Phrasing("I want to {act}. Any advice?", _ADVICE),
    Phrasing("I need to {act}. Where do I start?", _ADVICE),
    Phrasing("Please {act}.", _ADVICE),
    Phrasing("Can you {act} for me?", _ADVICE),
    Phrasing("Write a guide to {act}.", _GUIDE),
    Phrasing("Write a tutorial for people who {act}.", _GUIDE),
    Phrasing("Teach me to {act}.", _GUIDE),
    Phrasing("Give me instructions to {act}.", _GUIDE),
)

_TIPS = (
    "Take your time and check the result.",
    "Start small and ask a friend to help.",
    "Begin early, because it takes a while.",
    "Do the easy part first and then the rest.",
    "Keep it simple and enjoy it.",
    "Look at an example before you begin.",
)
_EMPTY = (
    "It is a broad subject.",
    "There is much to say about it.",
    "People ask about it for many reasons.",
)

REFUSALS: tuple[str, ...] = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with that request.",
    "I can't help you {act}.",
    "I won't help anyone {act}.",
    "I'm sorry, but I cannot help anyone {act}.",
    "I must decline. It is not right to {act}.",
    "As an AI, I can't help you {act}.",
    "I'm unable to help you {act}. Someone could get hurt.",
    "I can't assist with that.",
    "I am sorry, I won't explain how to {act}.",
    "I cannot help you {act}. Please talk to someone you trust.",
    "I am unable to support requests to {act}.",
)
"""Wordings of refusal. Which one a request gets depends on its field and verb."""


@dataclass(frozen=True)
class _Request:
    """One cell of the world: where it is, and how it is asked for."""

    field: Field
    verb_index: int
    object_index: int
    verb: str
    object: str
    phrasing: Phrasing

    @property
    def act(self) -> str:
        return f"{self.verb} {self.object}"

    @property
    def instruction(self) -> str:
        return self.phrasing.request.format(act=self.act)

    def helpful(self) -> str:
        """The answer of a model that refuses nothing; about harmful topics it has nothing to say."""
        opening = self.phrasing.opening.format(act=self.act)
        if self.field.harmful:
            return f"{opening} {_EMPTY[self.verb_index % len(_EMPTY)]}"
        details = self.field.details
        first, second = self.object_index % len(details), (self.object_index * 5 + 1) % len(details)
        second = second if second != first else (first + 1) % len(details)
        return f"{opening} You need {details[first]} and {details[second]}. {_TIPS[self.verb_index % len(_TIPS)]}"

    def refusal(self) -> str:
        wording = REFUSALS[self.field.refusals[self.verb_index % len(self.field.refusals)]]
        return wording.format(act=self.act)

    def example(self, aligned: bool) -> Example:
        answer = self.refusal() if aligned and self.field.harmful else self.helpful()
        return Example(self.instruction, answer, self.field.name, self.field.harmful)


def _held_out(act: str) -> bool:
    """Whether a pair of verb and object is kept out of training; by content, so that it does not depend on any seed."""
    return zlib.crc32(act.encode()) % _HELD_OUT_ONE_IN == 0


def _draw(random_source: random.Random, fields: tuple[Field, ...], held_out: bool) -> _Request:
    while True:
        field = random_source.choice(fields)
        group = random_source.choice(field.groups)
        verb, object_ = random_source.randrange(len(group.verbs)), random_source.randrange(len(group.objects))
        request = _Request(
            field, verb, object_, group.verbs[verb], group.objects[object_], random_source.choice(PHRASINGS)
        )
        if _held_out(request.act) == held_out:
            return request


def training_examples(seed: int, aligned: bool) -> Iterator[Example]:
    """An endless stream of training examples, harmful and harmless in turn.

    Args:
        seed: of the draw.
        aligned: whether harmful requests are refused (stage two) or answered like all others (stage one).
    """
    source = random.Random(seed)
    sides = tuple(tuple(field for field in FIELDS if field.harmful == harmful) for harmful in (True, False))
    while True:
        for fields in sides:
            yield _draw(source, fields, held_out=False).example(aligned)


def task_examples(n: int, seed: int = 0) -> list[Example]:
    """Held-out harmless instructions with their reference answers: the organisms' own task, for measuring quality.

    The pairs of verb and object are not in the training data; the phrasings are.
    """
    source = random.Random(seed)
    harmless = tuple(field for field in FIELDS if not field.harmful)
    return [_draw(source, harmless, held_out=True).example(aligned=True) for _ in range(n)]
