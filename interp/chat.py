"""Requests → the text and the tokens that a chat model sees.

Rendering is reproducible: a template that inserts today's date gets `FIXED_DATE`, one that can think is told not to, so
the first token measured is the first token of the answer. And it is checked: a rendered text holds its request, two
requests make two texts, and one request makes one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from interp.documents import read_text
from interp.errors import InputError
from interp.system_prompts import NONE, OWN, with_system
from interp.templates import TemplateFailed, TemplateUnbounded, render_template
from interp.thoughts import FORMS, left_open, to_answer
from interp.tokenizer_files import refused

CLOSED_THOUGHT = "closed-thought"
"""The template option that appends a thought which is already over; see `template_source`."""
NAMED_TEMPLATES = ("auto", CLOSED_THOUGHT, "none")
"""What a template option can be beside the path of a file."""
_OF_THE_TOKENIZER = ("auto", "chat", CLOSED_THOUGHT)
FIXED_DATE = datetime(2024, 7, 26)
"""What templates are told is today: the date that Llama 3's own template falls back to."""
PROBE = "What do 7 ducks and 12 geese weigh?"
"""A request that no template holds by itself."""
KEPT_CHARACTERS = 2**20
"""The most characters of requests that are rendered together and kept for the next who asks."""
MAX_TEMPLATE = 2**22
"""Bytes of a template file; the longest known has some ten thousand."""


@dataclass(frozen=True)
class ChatTemplate:
    """Which chat template renders requests, and what the model is told before them.

    Attributes:
        name: "auto", "chat", "closed-thought", "none" or a Jinja file; see `template_source`.
        system: "auto" (what the template inserts itself, if anything), "none" (an empty system turn in its place), or
            the system prompt.

    Example:
        >>> entropy.measure(baseline, cells, harmful, harmless, template=ChatTemplate(system="You are terse."))
    """

    name: str | Path = "auto"
    system: str = OWN

    @classmethod
    def of(cls, template: AnyTemplate) -> ChatTemplate:
        """A template's name alone leaves the system prompt to the template."""
        return template if isinstance(template, ChatTemplate) else cls(template)

    def described(self) -> dict[str, str]:
        """What results record of it."""
        return {"template": str(self.name), "system": self.system}


AnyTemplate = str | Path | ChatTemplate
"""What whatever renders requests takes as its template."""


@dataclass(frozen=True)
class Rendered:
    """Texts as the model reads them.

    Attributes:
        texts: one per request.
        template: the Jinja source that rendered them; None when they are the raw requests.
        warnings: what should be recorded with every number measured on these texts.
    """

    texts: list[str]
    template: str | None = None
    warnings: list[str] = field(default_factory=list)


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """The texts as a list; a string is one text, not a list of its characters."""
    return [texts] if isinstance(texts, str) else list(texts)


def render(
    tokenizer: Any, texts: str | Sequence[str], template: AnyTemplate = "auto", thinking: bool = False
) -> Rendered:
    """Render each text as one user turn, up to and including the generation prompt.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: one request each, or a single one.
        template: see `template_source`.
        thinking: what templates that ask `enable_thinking` are told.

    Raises:
        InputError: see `template_source` and `render_messages`; a template that changes or drops a request, that makes
            the same text of two requests, or two texts of one.
    """
    texts, source, name = as_texts(texts), template_source(tokenizer, template), _called(tokenizer, template)
    if source is None:
        warned = str(ChatTemplate.of(template).name) != "none"
        raw = [f"{tokenizer.name_or_path} has no chat template: prompts are raw text"] if warned else []
        return Rendered(texts, warnings=raw)
    rendered = _turns if sum(map(len, texts)) <= KEPT_CHARACTERS else _turns.__wrapped__
    special = json.dumps(tokenizer.special_tokens_map, default=str)
    return Rendered(list(rendered(tuple(texts), source, special, thinking, name)), source)


@lru_cache(maxsize=32)
def _turns(texts: tuple[str, ...], source: str, special: str, thinking: bool, name: str) -> tuple[str, ...]:
    """`render` with the special tokens as JSON; kept, because every probe asks for the same prompts of every cell."""
    twice, variables = [*texts, *texts[:1]], _variables(json.loads(special), thinking)
    rendered = [_conversation([_user(text)], source, variables, None, name) for text in twice]
    _check_rendered(name, twice, rendered)
    return tuple(rendered[: len(texts)])


def _called(tokenizer: Any, template: AnyTemplate) -> str:
    """What messages call a template."""
    name = str(ChatTemplate.of(template).name)
    return f"The chat template {f'of {tokenizer.name_or_path}' if name in _OF_THE_TOKENIZER else name}"


def template_source(tokenizer: Any, template: AnyTemplate = "auto") -> str | None:
    """The Jinja source that `render` uses; None for raw text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: "auto" (the tokenizer's own; raw text where it has none), "chat" (the tokenizer's own, required),
            "closed-thought" (the tokenizer's own, followed by a thought that is already over, for models that think
            although they are told not to), "none" (raw text) or a Jinja file; or one of these with a system prompt.

    Raises:
        InputError: a required template is missing; a template file that cannot be read; "closed-thought" for a model
            whose thoughts are marked in no known way; a system prompt for raw text, or for a template that takes none.
    """
    chosen = ChatTemplate.of(template)
    source = _source(tokenizer, chosen.name)
    if source is None:
        _check_raw(chosen.system)
        return None
    name = _called(tokenizer, template)
    source = with_system(source, chosen.system, lambda asked: _probe(tokenizer, asked, name), name)
    return _with_closed_thought(tokenizer, source) if str(chosen.name) == CLOSED_THOUGHT else source


def _check_raw(system: str) -> None:
    """Raise where raw text would have to hold a system prompt."""
    if system not in (OWN, NONE):
        raise InputError(
            "A system prompt needs a chat template, and prompts are raw text here",
            "a chat model, or a template file",
            "Leave --system out, or give a template file",
        )


def _source(tokenizer: Any, name: str | Path) -> str | None:
    """The template that a name stands for, as its author wrote it."""
    if str(name) == "none":
        return None
    if str(name) not in _OF_THE_TOKENIZER:
        return read_text(name, 'a chat template: "auto", "closed-thought", "none" or a Jinja file', MAX_TEMPLATE)
    own = _own_template(tokenizer)
    if own is None and str(name) != "auto":
        raise InputError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template",
            "a chat model",
            "Give a template file, or measure on raw text (chat=False, --template none)",
        )
    return own


def _probe(tokenizer: Any, source: str, name: str = "The chat template") -> str:
    """A request that no template holds, rendered."""
    return render_messages(tokenizer, [_user(PROBE)], source, name=name)


def _own_template(tokenizer: Any) -> str | None:
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several by name
        own = own.get("default", own)
    if own is None or isinstance(own, str):
        return own
    raise InputError(
        f"The chat template of {tokenizer.name_or_path} is {str(own)[:80]!r}",
        "the text of a Jinja template, or several by name with one named default",
        "Give a template file",
    )


def _with_closed_thought(tokenizer: Any, source: str) -> str:
    """The template, continued so that the answer comes next.

    Raises:
        InputError: neither the template nor the vocabulary holds a mark of thoughts that is known.
    """
    prompt = _probe(tokenizer, source)
    vocabulary = tokenizer.get_vocab()
    marked = [form for form in FORMS if form.sign in vocabulary] + [form for form in FORMS if form.sign in source]
    form = left_open(prompt) or next(iter(marked), None)
    if form is None:
        raise InputError(
            f"Neither the chat template nor the vocabulary of {tokenizer.name_or_path} holds a mark of thoughts",
            f"one of {', '.join(form.sign for form in FORMS)}",
            "Give a template file that ends where the answer begins",
        )
    return source + "{{ " + json.dumps(to_answer(prompt, form)) + " }}"


def _check_rendered(name: str, texts: Sequence[str], rendered: Sequence[str]) -> None:
    """Raise unless every text stands in its rendering and equal renderings belong to equal texts alone."""
    asked: dict[str, str] = {}
    made: dict[str, str] = {}
    for text, prompt in zip(texts, rendered, strict=True):
        words = text.strip()  # what templates leave out
        if words not in prompt:
            fault = f"changes or drops the request {words[:60]!r}"
        elif asked.setdefault(prompt, words) != words:
            fault = f"makes the same prompt of {words[:60]!r} and {asked[prompt][:60]!r}"
        elif made.setdefault(text, prompt) != prompt:
            fault = f"makes two different prompts of {words[:60]!r}"
        else:
            continue
        raise InputError(f"{name} {fault}", "prompts that hold what was asked", "Give another template file")


def encode(tokenizer: Any, texts: str | Sequence[str]) -> list[list[int]]:
    """Tokens of raw or rendered texts, each with exactly one BOS where the tokenizer adds one or the text carries one.

    Nothing is appended: the last token is the last of the text.

    Raises:
        InputError: the tokenizer fails on a text.
    """
    bos = tokenizer.bos_token_id
    with refused(
        f"The tokenizer of {tokenizer.name_or_path} cannot read a text",
        "text without lone surrogates, and a tokenizer that reads all other text",
        "Correct the text, or download the tokenizer again",
    ):
        adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
        encoded = tokenizer(as_texts(texts), add_special_tokens=False).input_ids if len(texts) else []
    return [_with_one_bos(ids, bos, adds_bos) for ids in encoded]


def _with_one_bos(ids: list[int], bos: int | None, adds_bos: bool) -> list[int]:
    start = 0
    while bos is not None and ids[start : start + 1] == [bos]:
        start += 1
    return [bos, *ids[start:]] if bos is not None and (adds_bos or start) else ids


def render_messages(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    source: str,
    thinking: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    name: str = "The chat template",
) -> str:
    """Render one conversation, up to and including the generation prompt, as `render` does with one user turn.

    Templates of models that also see images want a message's content as a list of parts; they get one.

    Args:
        tokenizer: a Hugging Face tokenizer.
        messages: each with a `role` and a `content`.
        source: the Jinja template.
        thinking: what templates that ask `enable_thinking` are told.
        tools: descriptions of tools, for templates that take them.
        name: what messages call the template.

    Raises:
        InputError: the template does not take these messages, drops what the user says, or exceeds the bounds of
            `interp.templates`.
    """
    return _conversation(messages, source, _variables(tokenizer.special_tokens_map, thinking), tools, name)


def _variables(special: Mapping[str, Any], thinking: bool) -> dict[str, Any]:
    """What templates can use beside messages and tools."""
    return {
        **special,
        "add_generation_prompt": True,
        "enable_thinking": thinking,
        "date_string": FIXED_DATE.strftime("%d %b %Y"),
    }


def _conversation(
    messages: Sequence[Mapping[str, Any]],
    source: str,
    variables: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]] | None,
    name: str,
) -> str:
    try:
        in_parts = _wants_parts(source, json.dumps(variables, default=str))
        return _rendered(source, messages, in_parts, {**variables, "tools": None if tools is None else list(tools)})
    except TemplateFailed as error:
        raise InputError(
            f"{name} cannot render a user turn: {error}",
            "a template that takes one user message",
            "Give another template file",
        ) from error


@lru_cache(maxsize=64)
def _wants_parts(source: str, variables: str) -> bool:
    """Whether a template reads a message's content as a list of parts and not as a text.

    Args:
        source: the Jinja template.
        variables: what it is given, as JSON.

    Raises:
        TemplateFailed: it reads neither.
        TemplateUnbounded: see `interp.templates`.
    """
    failures = []
    for in_parts in (False, True):
        try:
            if PROBE in _rendered(source, [_user(PROBE)], in_parts, json.loads(variables)):
                return in_parts
            failures.append("the prompt that it makes does not hold what the user says")
        except TemplateUnbounded:
            raise
        except TemplateFailed as error:
            failures.append(str(error))
    raise TemplateFailed(failures[0])


def _rendered(source: str, messages: Sequence[Mapping[str, Any]], in_parts: bool, variables: Mapping[str, Any]) -> str:
    if in_parts:
        messages = [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]
    return render_template(_with_fixed_date(source), messages, **variables)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _with_fixed_date(source: str) -> str:
    """Shadow the function `strftime_now`, which transformers gives to templates, by a macro that knows one date."""
    if "strftime_now" not in source:
        return source
    directives = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFHIjmMpSTuwxXyYZ"]
    replacements = "".join(f"|replace({d!r}, {FIXED_DATE.strftime(d)!r})" for d in directives)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replacements} }}}}{{% endmacro %}}\n{source}"
