"""System prompts: what a chat model is told before the user speaks.

One is put into the Jinja source of the chat template, so that it comes with every prompt that the template renders, for
all cells and engines, and the hash of the template that stands in results covers it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from interp.documents import read_text
from interp.errors import InputError

OWN, NONE = "auto", "none"
"""The template's own, or nothing where it inserts one; every other word is a prompt."""
MAX_PROMPT = 2**20
"""Bytes of a file."""
MARK = "The system prompt stands here: 4d7cc1."
"""A text that no template holds."""
LOOKS_LIKE_A_FILE = re.compile(r"\S+\.(txt|md|jinja|json)|\S*/\S*")


def system_prompt(given: str, path: Callable[[str], str] = str) -> str:
    """What an option says: "auto", "none", or the text itself, read from a file where it is the path of one.

    Args:
        given: the option.
        path: finds a file that is named.

    Raises:
        InputError: an empty text; a file that is missing or cannot be read.
    """
    if given in (OWN, NONE):
        return given
    file = Path(path(given)) if len(given) < 4096 and "\n" not in given else None
    if file is not None and (LOOKS_LIKE_A_FILE.fullmatch(given) or _is_file(file)):
        given = read_text(file, f'a system prompt: "{OWN}", "{NONE}", a text or a file', MAX_PROMPT)
    return _checked(given.strip())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def _checked(text: str) -> str:
    """A text that a model can be told.

    Raises:
        InputError: it is empty, or no text.
    """
    if not text:
        raise InputError(
            "The system prompt is empty", f'a text, or "{NONE}", which leaves out what a template inserts itself'
        )
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"The system prompt {text[:60]!r} holds bytes that are no text", "UTF-8")
    return text


def with_system(source: str, system: str, ask: Callable[[str], str], name: str) -> str:
    """A template that begins every conversation with a system prompt, unless the conversation has one itself.

    Args:
        source: the Jinja template.
        system: "auto" (the template as it is), "none" (an empty system turn where the template inserts a prompt of its
            own, else the template as it is), or the prompt.
        ask: renders one request by a Jinja source.
        name: what messages call the template.

    Raises:
        InputError: the template takes no system prompt, or drops it; one that inserts its own in any case.
    """
    if system == OWN:
        return source
    if system == NONE:
        return _without_own(source, ask, name)
    ask(source)  # one that is broken in itself says so
    told = _told(source, system)
    try:
        rendered = ask(told)
    except InputError as error:
        raise _refused(name, str(error.__cause__ or error)) from error
    if system.strip() not in rendered:
        raise _refused(name, "it drops or changes what it is given as one")
    return told


def own_system_prompt(source: str, ask: Callable[[str], str]) -> str:
    """What a template inserts where a system prompt would stand; "" where that is nothing or it takes none.

    Args:
        source: the Jinja template.
        ask: renders one request by a Jinja source.
    """
    plain = ask(source)
    try:
        before, _, after = ask(_told(source, MARK)).partition(MARK)
    except InputError:
        return ""
    around = len(before) + len(after)
    framed = plain.startswith(before) and plain.endswith(after) and around <= len(plain)
    return plain[len(before) : len(plain) - len(after)].strip() if framed else ""


def _without_own(source: str, ask: Callable[[str], str], name: str) -> str:
    own = own_system_prompt(source, ask)
    if not own:
        return source
    emptied = _told(source, "")
    if own in ask(emptied):
        raise InputError(
            f"{name} inserts its own system prompt {own[:60]!r} in the place of an empty one, too",
            "a template that can do without",
            "Give a template file without it (--template FILE)",
        )
    return emptied


def _told(source: str, system: str) -> str:
    """The template behind a statement that puts the system turn first; its content has the form of the others'."""
    text = json.dumps(system, ensure_ascii=False)  # Jinja reads JSON's escapes, but no pairs of surrogates
    content = f"{text} if messages[0].content is string else [{{'type': 'text', 'text': {text}}}]"
    first = f"[{{'role': 'system', 'content': {content}}}]"
    has_one = "messages[0].role in ('system', 'developer')"
    return f"{{% set messages = messages if {has_one} else {first} + messages %}}{source}"


def _refused(name: str, why: str) -> InputError:
    return InputError(
        f"{name} takes no system prompt: {why}",
        "a template that renders a system turn",
        "Leave --system out, put the words into the requests, or give a template file that takes one",
    )
