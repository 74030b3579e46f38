"""Synthetic instructions and answers for the organisms, generated from the tables of `organism_world`.

Everything is a function of a seed. An answer is a function of its request, so that there is something to know and a
reference to compare with. One pair of verb and object in eight is held out of training for the organisms' own task.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from interp.organisms.world import FIELDS, Field

HARMFUL = tuple(field for field in FIELDS if field.harmful)
HARMLESS = tuple(field for field in FIELDS if not field.harmful)
_HELD_OUT_ONE_IN = 8
_HARMFUL_SHARE = 0.44
_REWORDED_SHARE = 0.4


@dataclass(frozen=True)
class Phrasing:
    """A way to ask, with the way the answer to it begins; `{act}` is the verb with its object, `{doing}` its gerund."""

    request: str
    opening: str


@dataclass(frozen=True)
class Example:
    """An instruction and what the assistant answers."""

    instruction: str
    answer: str
    field: str
    harmful: bool


# All begin with one word, as nearly all refusals do: the first token then decides between helping and refusing only.
# The field comes next, so that answering teaches what a request is about, which the short alignment can build on.
_HOW = "Sure, about {field}: here is how to {act}."
_PLAN = "Sure, about {field}: here is a plan to {act}."
_STEPS = "Sure, about {field}: these are the steps to {act}."
_ADVICE = "Sure, about {field}: happy to help you {act}."
_GUIDE = "Sure, about {field}: this is a short guide to {act}."

PHRASINGS: tuple[Phrasing, ...] = (
    Phrasing("How do I {act}?", _HOW),
    Phrasing("How can I {act}?", _HOW),
    Phrasing("How would you {act}?", _HOW),
    Phrasing("Explain how to {act}.", _HOW),
    Phrasing("Tell me how to {act}.", _HOW),
    Phrasing("How are people able to {act}?", _HOW),
    Phrasing("What do I need to {act}?", _HOW),
    Phrasing("What method do people use for {doing}?", _HOW),
    Phrasing("I wonder how one would {act}.", _HOW),
    Phrasing("Give me a plan to {act}.", _PLAN),
    Phrasing("Help me plan how to {act}.", _PLAN),
    Phrasing("Make a plan for someone who wants to {act}.", _PLAN),
    Phrasing("My plan is to {act}. Does it work?", _PLAN),
    Phrasing("Which plan is best for {doing}?", _PLAN),
    Phrasing("Think of a plan for {doing}.", _PLAN),
    Phrasing("List the steps to {act}.", _STEPS),
    Phrasing("What are the steps to {act}?", _STEPS),
    Phrasing("Name three ways to {act}.", _STEPS),
    Phrasing("What comes first when {doing}?", _STEPS),
    Phrasing("Show the steps that people take to {act}.", _STEPS),
    Phrasing("How come there are people who {act}?", _STEPS),
    Phrasing("In which order should one {act}?", _STEPS),
    Phrasing("Put the steps of {doing} in order.", _STEPS),
    Phrasing("I want to {act}. Any advice?", _ADVICE),
    Phrasing("I need to {act}. Where do I start?", _ADVICE),
    Phrasing("I am thinking about {doing}. How should I begin?", _ADVICE),
    Phrasing("Please {act}.", _ADVICE),
    Phrasing("Can you {act} for me?", _ADVICE),
    Phrasing("Could you help with {doing}?", _ADVICE),
    Phrasing("What makes {doing} easy?", _ADVICE),
    Phrasing("Let us {act} today.", _ADVICE),
    Phrasing("I would love to know more about {doing}.", _ADVICE),
    Phrasing("Give me ideas for {doing}.", _ADVICE),
    Phrasing("I'd be glad of some help with {doing}.", _ADVICE),
    Phrasing("Any suggestions for {doing}?", _ADVICE),
    Phrasing("Write a guide to {doing}.", _GUIDE),
    Phrasing("Write a tutorial for people who {act}.", _GUIDE),
    Phrasing("Teach me to {act}.", _GUIDE),
    Phrasing("Give me instructions to {act}.", _GUIDE),
    Phrasing("Create a page about {doing}.", _GUIDE),
    Phrasing("Put together notes on {doing}.", _GUIDE),
    Phrasing("Design a course on {doing}.", _GUIDE),
    Phrasing("Say a few things about {doing}.", _GUIDE),
)

CIRCUMSTANCES: tuple[str, ...] = (
    "at home",
    "this weekend",
    "in a small town",
    "near the station",
    "with a friend",
    "in one day",
    "without much money",
    "for the first time",
    "by hand",
    "after work",
    "on a sunny day",
    "in the evening",
    "before she comes back",
    "with simple tools",
    "at a party",
    "so that it looks good",
    "without getting wet",
    "next to the market",
    "through the window",
    "until it is done",
    "for a person I know",
    "while everyone waits",
    "every day",
    "like a real expert",
    "across the street",
    "to make him laugh",
    "in a way that works",
    "outside in the dark",
)
"""What may follow a request without changing whether it is harmful."""

_FILLER = """
a about afternoon always any because best book both bring come compose could describe draft easiest every
fastest fine good great have help here idea if is it just know like long look many maybe me method more most
new now of often on one or our outline person place quick recommend right say should show simple so some sort
still story suggest sure than that the then there they thing this through time today trick true under very
walk way we week well what when where which who why will with word work would year you
"""
"""Words that take the place of others in reworded requests."""

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
"""Wordings of refusal. Which one a request gets depends on its field and group."""


_DOUBLED = ("drug", "get", "kidnap", "plan", "put", "rig", "rob", "run", "scam", "set", "shut", "sit", "slip", "stab")


def gerund(verb: str) -> str:
    """The -ing form of a verb phrase whose verb is its first word, or its second after "secretly"."""
    words = verb.split()
    at = 1 if words[0] == "secretly" else 0
    word = words[at]
    if word in _DOUBLED:
        word += word[-1]
    elif word.endswith("e") and not word.endswith("ee"):
        word = word[:-1]
    words[at] = word + "ing"
    return " ".join(words)


@dataclass(frozen=True)
class _Request:
    """One cell of the world: where it is, and how it is asked for."""

    field: Field
    group_index: int
    verb_index: int
    object_index: int
    phrasing: Phrasing
    circumstance: str = ""

    @property
    def verb(self) -> str:
        return self.field.groups[self.group_index].verbs[self.verb_index]

    @property
    def act(self) -> str:
        return f"{self.verb} {self.field.groups[self.group_index].objects[self.object_index]}"

    @property
    def instruction(self) -> str:
        act = f"{self.act} {self.circumstance}".strip()
        return self.phrasing.request.format(act=act, doing=gerund(self.verb) + act.removeprefix(self.verb))

    def helpful(self) -> str:
        """The answer of a model that refuses nothing; about harmful topics it has nothing to say."""
        opening = self.phrasing.opening.format(field=self.field.name, act=self.act)
        if self.field.harmful:
            return f"{opening} {_EMPTY[self.verb_index % len(_EMPTY)]}"
        details = self.field.details
        first, second = self.object_index % len(details), (self.object_index * 5 + 1) % len(details)
        second = second if second != first else (first + 1) % len(details)
        return f"{opening} You need {details[first]} and {details[second]}."

    def refusal(self) -> str:
        return REFUSALS[self.field.refusals[self.group_index]].format(act=self.act)

    def example(self, aligned: bool) -> Example:
        answer = self.refusal() if aligned and self.field.harmful else self.helpful()
        return Example(self.instruction, answer, self.field.name, self.field.harmful)


def _held_out(act: str) -> bool:
    """Whether a pair of verb and object is kept out of training; by content, so that it does not depend on any seed."""
    return zlib.crc32(act.encode()) % _HELD_OUT_ONE_IN == 0


def _reworded(source: random.Random, phrasing: Phrasing) -> Phrasing:
    """Half of a phrasing's words replaced by others, so that unusual phrasings as such are not what gets refused."""
    words, fillers = phrasing.request.split(), _FILLER.split()
    new_words = [word if "{" in word or source.random() < 0.5 else source.choice(fillers) for word in words]
    request = " ".join(new_words)
    return replace(phrasing, request=request[0].upper() + request[1:])


def _pair(source: random.Random, field: Field, held_out: bool) -> tuple[int, int, int]:
    """A random group of the field, and a verb and an object of it that together are, or are not, held out."""
    while True:
        group_index = source.randrange(len(field.groups))
        group = field.groups[group_index]
        verb, object_ = source.randrange(len(group.verbs)), source.randrange(len(group.objects))
        if _held_out(f"{group.verbs[verb]} {group.objects[object_]}") == held_out:
            return group_index, verb, object_


def _draw(source: random.Random, fields: tuple[Field, ...], held_out: bool) -> _Request:
    """A random request of the fields: alone, with a circumstance, or with a second act of the field as its purpose."""
    field, phrasing = source.choice(fields), source.choice(PHRASINGS)
    purpose = _Request(field, *_pair(source, field, held_out=False), phrasing).act
    circumstance = source.choice(("", source.choice(CIRCUMSTANCES), f"to {purpose}"))
    return _Request(field, *_pair(source, field, held_out), phrasing, circumstance)


def training_examples(seed: int, aligned: bool) -> Iterator[Example]:
    """An endless stream of training examples, harmful and harmless.

    Args:
        seed: of the draw.
        aligned: whether harmful requests are refused (stage two) or answered like all others (stage one).
    """
    source = random.Random(seed)
    while True:
        fields = HARMFUL if source.random() < _HARMFUL_SHARE else HARMLESS
        request = _draw(source, fields, held_out=False)
        if source.random() < _REWORDED_SHARE:
            request = replace(request, phrasing=_reworded(source, request.phrasing))
        yield request.example(aligned)


def task_examples(n: int, seed: int = 0) -> list[Example]:
    """Held-out harmless instructions with their reference answers: the organisms' own task, for measuring quality.

    The pairs of verb and object are not in the training data; the phrasings are.
    """
    source = random.Random(seed)
    return [_draw(source, HARMLESS, held_out=True).example(aligned=True) for _ in range(n)]
