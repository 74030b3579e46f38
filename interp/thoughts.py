"""How a prompt is continued so that the answer comes next, by how the model marks what it thinks.

What is taken out of completions is another matter; see `interp.thinking`.
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
        sign: what shows, in a template or a vocabulary, that the model marks its thoughts so.
    """

    opening: str
    closing: str
    over: str
    sign: str


def _tags(opening: str, closing: str) -> ThoughtForm:
    """The form in which Qwen3's template writes a thought that is not wanted."""
    return ThoughtForm(opening, f"{closing}\n\n", f"{opening}\n\n{closing}\n\n", opening)


FORMS = (
    _tags("<think>", "</think>"),
    _tags("<thinking>", "</thinking>"),
    _tags("<thought>", "</thought>"),
    _tags("<reasoning>", "</reasoning>"),
    _tags("<seed:think>", "</seed:think>"),
    _tags("◁think▷", "◁/think▷"),
    _tags("<|begin_of_thought|>", "<|end_of_thought|>"),
    _tags("<|START_THINKING|>", "<|END_THINKING|>"),
    ThoughtForm("[THINK]", "[/THINK]", "[THINK][/THINK]", "[THINK]"),
    ThoughtForm("<|channel>thought", "<channel|>", "<|channel>thought\n<channel|>", "<|channel>thought"),  # Gemma 4
    ThoughtForm(
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        "<|channel|>",
    ),  # gpt-oss
)


def left_open(prompt: str) -> ThoughtForm | None:
    """The thought in which a rendered prompt ends; None where it ends in none."""
    return next((form for form in FORMS if prompt.rstrip().endswith(form.opening)), None)


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
