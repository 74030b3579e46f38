"""Requests → the text and the tokens that a chat model sees.

Rendering is reproducible: a template that inserts today's date gets `FIXED_DATE`, one that can think is told not to, so
the first token measured is the first token of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from interp.errors import InputError

FIXED_DATE = datetime(2024, 7, 26)
"""What templates are told is today: the date that Llama 3's own template falls back to."""


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


def render(tokenizer: Any, texts: Sequence[str], template: str | Path = "auto", thinking: bool = False) -> Rendered:
    """Render each text as one user turn, up to and including the generation prompt.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: one request each.
        template: "auto" (the tokenizer's own; raw text with a warning where it has none), "chat" (the tokenizer's own,
            required), "none" (raw text) or a Jinja file.
        thinking: what templates that ask `enable_thinking` are told.

    Raises:
        InputError: "chat" without a template; a template file that cannot be read or rendered.
    """
    source = template_source(tokenizer, template)
    if source is not None:
        return Rendered([render_messages(tokenizer, [_user(text)], source, thinking) for text in texts], source)
    raw = [] if str(template) == "none" else [f"{tokenizer.name_or_path} has no chat template: prompts are raw text"]
    return Rendered(list(texts), warnings=raw)


def template_source(tokenizer: Any, template: str | Path = "auto") -> str | None:
    """The Jinja source that `render` uses; None for raw text.

    Raises:
        InputError: "chat" without a template; a template file that cannot be read.
    """
    if str(template) == "none":
        return None
    if str(template) not in ("auto", "chat"):
        return _read(Path(template))
    if tokenizer.chat_template is None and str(template) == "chat":
        raise InputError(
            f"The tokenizer of {tokenizer.name_or_path} has no chat template",
            "a chat model",
            "Give a template file, or measure on raw text (chat=False, --template none)",
        )
    return None if tokenizer.chat_template is None else tokenizer.get_chat_template()


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of raw or rendered texts, each with exactly one BOS where the tokenizer adds one or the text carries one.

    Nothing is appended: the last token is the last of the text.
    """
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer("a").input_ids[:1] == [bos]
    encoded = tokenizer(list(texts), add_special_tokens=False).input_ids if len(texts) else []
    return [_with_one_bos(ids, bos, adds_bos) for ids in encoded]


def _with_one_bos(ids: list[int], bos: int | None, adds_bos: bool) -> list[int]:
    start = 0
    while bos is not None and ids[start : start + 1] == [bos]:
        start += 1
    return [bos, *ids[start:]] if bos is not None and (adds_bos or start) else ids


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The chat template {path} cannot be read: {error}", "a Jinja file", 'Give its path, or "auto" or "none"'
        ) from error


def render_messages(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    source: str,
    thinking: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Render one conversation, up to and including the generation prompt, as `render` does with one user turn.

    Args:
        tokenizer: a Hugging Face tokenizer.
        messages: each with a `role` and a `content`.
        source: the Jinja template.
        thinking: what templates that ask `enable_thinking` are told.
        tools: descriptions of tools, for templates that take them.

    Raises:
        InputError: the template does not take these messages.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=_with_fixed_date(source),
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
            date_string=FIXED_DATE.strftime("%d %b %Y"),
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:  # what expressions in a template raise
        raise InputError(
            f"The chat template of {tokenizer.name_or_path} cannot render a user turn: {error}",
            "a template that takes one user message",
            "Give another template file",
        ) from error


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _with_fixed_date(source: str) -> str:
    """Shadow the function `strftime_now`, which transformers gives to templates, by a macro that knows one date."""
    if "strftime_now" not in source:
        return source
    directives = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdDeFHIjmMpSTuwxXyYZ"]
    replacements = "".join(f"|replace({d!r}, {FIXED_DATE.strftime(d)!r})" for d in directives)
    return f"{{% macro strftime_now(format) %}}{{{{ format{replacements} }}}}{{% endmacro %}}\n{source}"
