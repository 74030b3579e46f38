"""How models mark what they think before they answer, as far as prompts are concerned.

A probe of the first token wants the first token of the answer. A prompt that ends inside a thought, or a model that
opens one whatever its template says, would have it measure the first token of the thought.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThoughtForm:
    """One way to mark a thought.

    Attributes:
        opening: what stands before the thought.
        closing: what ends it and leads to the answer.
        over: a thought that is over before it began, after which the answer begins.
        sign: what a completion that opens one starts with.
    """

    opening: str
    closing: str
    over: str
    sign: str


def _tags(opening: str, closing: str) -> ThoughtForm:
    """As Qwen3's template writes a thought that is not wanted."""
    return ThoughtForm(opening, f"{closing}\n\n", f"{opening}\n\n{closing}\n\n", opening)


FORMS = (
    _tags("<think>", "</think>"),
    _tags("<thinking>", "</thinking>"),
    _tags("<thought>", "</thought>"),
    _tags("<reasoning>", "</reasoning>"),
    _tags("<seed:think>", "</seed:think>"),
    _tags("◁think▷", "◁/think▷"),
    _tags("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThoughtForm("[THINK]", "[/THINK]", "[THINK][/THINK]", "[THINK]"),
    # gpt-oss: after any channel's name the first token would be that of the name.
    ThoughtForm(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        "<|channel|>",
    ),
)


def left_open(prompt: str) -> ThoughtForm | None:
    """The thought in which a rendered prompt ends; None where it ends in none."""
    return next((form for form in FORMS if prompt.rstrip().endswith(form.opening)), None)


def opened_by(completion: str) -> ThoughtForm | None:
    """The thought with which a completion (special tokens included) starts; None where it starts otherwise."""
    return next((form for form in FORMS if completion.lstrip().startswith(form.sign)), None)


def may_open(beginning: str) -> bool:
    """Whether a completion of which only the first tokens are known may still turn out to open a thought."""
    start = beginning.strip()
    return any(form.sign.startswith(start) or start.startswith(form.sign) for form in FORMS)


def to_answer(prompt: str, form: ThoughtForm) -> str:
    """What must be appended to a rendered prompt so that the answer comes next.

    Args:
        prompt: it may end inside a thought of this form.
        form: how the model marks its thoughts.
    """
    if left_open(prompt) is not form:
        return form.over
    begun = prompt[prompt.rindex(form.opening) :]
    return form.over.removeprefix(begun) if form.over.startswith(begun) else form.closing
