"""What a server sends → an answer of the model, or the reason why it is none. Pure functions.

A chat completion that cannot be read is asked for again (`UnreadableReply`). One that is the server's own word, such as
a content filter's, is no answer of the model (`NotTheModelsWord`): counted as one, it would be scored as compliance or
refusal by the words of an error message. Field names: OpenAI's API reference, "The chat completion object", and what
vLLM, llama.cpp, Ollama, Azure, OpenRouter and Mistral send beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.documents import parse_json
from interp.errors import InputError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

LONGEST = 300
"""Characters of a server's message that are repeated."""

_FILTER_CODES = frozenset(
    {
        "bio_policy",
        "content_blocked",
        "content_filter",
        "content_policy_violation",
        "cyber_policy",
        "data_inspection_failed",
        "guardrail_intervened",
        "invalid_prompt",
        "moderation_blocked",
        "responsibleaipolicyviolation",
    }
)
_LENGTH_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_FILTER_WORDS = re.compile(
    r"content (management )?policy|content[ _-]filter|\bmoderation\b|safety (system|policy|filter)|responsible ai"
    r"|(usage|acceptable use|safety) polic(y|ies)|violat\w+ .{0,60}\bpolic(y|ies)",
    re.I,
)
_LENGTH_WORDS = re.compile(
    r"(maximum|available|model'?s?) (context|input) (length|size|window)|context (length|size|window)|input length"
    r"|max_model_len|`?max_new_tokens`? must be|(prompt|input|request) is too (long|large)"
    r"|too many (input |prompt )?tokens",
    re.I,
)
_FILTERED = frozenset(
    {
        *("content_filter", "guardrail_intervened", "prohibited_content", "safety", "sensitive"),
        *("blocklist", "recitation", "refusal", "spii"),
    }
)
"""Ways to end an answer (`finish_reason`, in small letters) that are a filter's."""
THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Where servers put what a model thinks: vLLM and DeepSeek, vLLM since 0.10 and OpenRouter, Ollama."""
_BROKEN_OFF = frozenset({"abort", "aborted", "cancelled", "error", "network_error"})
"""Ways to end an answer that are a failure of the server."""


class UnreadableReply(Exception):
    """No chat completion; asking again may help."""


class NotTheModelsWord(Exception):
    """What came is the server's, not the model's; asking again gives the same."""


def read_completion(text: str) -> ChatCompletion:
    """The chat completion in the body of a reply, with the fields that are used and no others.

    `content` is the model's text, also where it came as a list of parts or in the field `refusal`; calls of tools are
    left out, because nobody offers any.

    Args:
        text: the body.

    Raises:
        UnreadableReply: no chat completion, or one that the server broke off.
        NotTheModelsWord: a filter ended it, or it has no text of the model.
    """
    from openai.types.chat import ChatCompletion

    reply, choice = _ended(text)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise UnreadableReply("its choice has no message")
    content, thinking = _content(message)
    answer = {"role": "assistant", "content": content} | ({"reasoning_content": thinking} if thinking else {})
    return ChatCompletion.construct(
        id=_text(reply.get("id")) or "",
        object="chat.completion",
        created=0,
        model=_text(reply.get("model")) or "",
        choices=[{"index": 0, "finish_reason": _text(choice.get("finish_reason")) or "stop", "message": answer}],
        usage=_usage(reply.get("usage")),
    )


class TextCompletion(NamedTuple):
    """What a server answered to token ids.

    Attributes:
        text: of the answer.
        tokens: its token ids; None where the server does not give them (vLLM does, where it is asked to).
        n_tokens: how many, the token that ended it not counted; None where the server does not say.
        n_prompt_tokens: how many it read; None where it does not say.
        prompt_tokens: which it read; None where it does not say.
        finished: whether the model ended it; else it was cut at the limit.
    """

    text: str
    tokens: list[int] | None
    n_tokens: int | None
    n_prompt_tokens: int | None
    prompt_tokens: list[int] | None
    finished: bool


def read_text_completion(text: str) -> TextCompletion:
    """The completion in the body of a reply of `/v1/completions`.

    Args:
        text: the body.

    Raises:
        UnreadableReply: no completion, or one that the server broke off.
        NotTheModelsWord: a filter ended it.
    """
    reply, choice = _ended(text)
    content = choice.get("text")
    if not isinstance(content, str):
        raise UnreadableReply("its choice has no text")
    usage, finished = _usage(reply.get("usage")), choice.get("finish_reason") != "length"
    n_tokens = None if usage is None else max(0, usage["completion_tokens"] - finished)
    n_prompt_tokens = None if usage is None else usage["prompt_tokens"]
    tokens, prompt = (_numbers(choice.get(name)) for name in ("token_ids", "prompt_token_ids"))
    return TextCompletion(content, tokens, n_tokens, n_prompt_tokens, prompt, finished)


def refused_because(status: int, body: object) -> str | None:
    """Why a server did not let the model answer; None where the error says nothing of the kind.

    Args:
        status: of HTTP.
        body: of the error, as the openai package gives it: without its outer "error".
    """
    if status == 413:
        return f"the request is too long for the server (HTTP 413{_said(body)})"
    if not 400 <= status < 500 or status in (401, 408, 409, 429):
        return None
    codes = {str(code).lower() for code in _codes(body)}
    words = error_message(body)
    if codes & _LENGTH_CODES or _LENGTH_WORDS.search(words):
        return f"the request is too long for the server (HTTP {status}{_said(body)})"
    if status == 451 or codes & _FILTER_CODES or _FILTER_WORDS.search(words):
        return f"the server did not let the model answer (HTTP {status}{_said(body)})"
    return None


def error_body(text: str) -> object:
    """The body of an error as the openai package gives it: an object without its outer "error", or text."""
    try:
        body = parse_json(text, "it")
    except InputError:
        return text
    return body.get("error", body) if isinstance(body, dict) else body


def error_message(body: object) -> str:
    """What an error's body says, on one line and not too long; a page of HTML is named as that."""
    if isinstance(body, Mapping):
        inner = body.get("error")
        message = body.get("message") or body.get("detail") or (inner if isinstance(inner, str) else "")
    else:
        message = body or ""
    return one_line(message if isinstance(message, str) else str(message))


def one_line(text: str) -> str:
    """At most `LONGEST` characters without line breaks; a page of HTML is named as that."""
    joined = " ".join(text[: 10 * LONGEST].split())
    if joined.startswith("<"):
        title = re.search(r"<title>(.*?)</title>", joined, re.I)
        return f"a page of HTML{f', “{title[1].strip()[:80]}”' if title else ''}"
    return joined if len(joined) <= LONGEST else joined[: LONGEST - 1] + "…"


def _object(text: str) -> Mapping[str, Any]:
    if not text.strip():
        raise UnreadableReply("it is empty")
    if text.lstrip().startswith("<"):
        raise UnreadableReply(f"it is {one_line(text)}")
    try:
        reply = parse_json(text, "it")
    except InputError as error:
        raise UnreadableReply(str(error).removesuffix(" Correct it.").rstrip(".")) from None
    if not isinstance(reply, dict):
        raise UnreadableReply(f"it is a JSON {type(reply).__name__}")
    return reply


def _raise_error(error: object) -> None:
    """Some servers send errors with HTTP 200."""
    code = error.get("code") if isinstance(error, Mapping) else None
    status = int(str(code)) if str(code).isdecimal() and 400 <= int(str(code)) < 600 else 400
    if reason := refused_because(status, error):
        raise NotTheModelsWord(reason)
    raise UnreadableReply(f"it is an error: {error_message(error) or one_line(str(error))}")


def _ended(text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A reply that the model itself ended, and its choice; raises as those who call it say."""
    reply = _object(text)
    if reply.get("error"):
        _raise_error(reply["error"])
    choice = _first_choice(reply)
    _check_end(choice.get("finish_reason"))
    return reply, choice


def _first_choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list):
        raise UnreadableReply("it has no choices")
    if not choices:
        raise UnreadableReply("its list of choices is empty")
    if not isinstance(choices[0], dict):
        raise UnreadableReply("its choice is not an object")
    if error := choices[0].get("error"):
        _raise_error(error)
    return choices[0]


def _check_end(reason: object) -> None:
    ended = reason.lower() if isinstance(reason, str) else ""
    if ended in _FILTERED:
        raise NotTheModelsWord(f"the server's filter ended the answer (finish_reason {ended})")
    if ended in _BROKEN_OFF:
        raise UnreadableReply(f"the server broke it off (finish_reason {ended})")


def _content(message: Mapping[str, Any]) -> tuple[str, str]:
    """The model's text and its thinking."""
    content, thinking = message.get("content"), ""
    if isinstance(content, list):
        content, thinking = _of_parts(content)
    if content is not None and not isinstance(content, str):
        raise UnreadableReply(f"its content is a JSON {type(content).__name__}")
    thinking = thinking or next((text for name in THINKING_FIELDS if (text := _text(message.get(name)))), "")
    if refusal := _text(message.get("refusal")):  # the model's own words, by the API's reference
        return refusal, thinking
    if not content and (called := _tools(message)):
        raise NotTheModelsWord(f"the answer is a call of a tool ({called}), which nobody offered")
    if content is None and not thinking:
        raise NotTheModelsWord("the server sent no text (its content is null)")
    return content or "", thinking


def _of_parts(parts: Sequence[object]) -> tuple[str, str]:
    """Text and thinking of content that is a list of parts, as Mistral's and multimodal servers send it."""
    text, thinking = "", ""
    for part in parts:
        if not isinstance(part, dict):
            raise UnreadableReply("its content is a list of something else than parts")
        thoughts = part.get("thinking")
        thinking += _of_parts(thoughts)[0] if isinstance(thoughts, list) else _text(thoughts) or ""
        text += _text(part.get("text")) or _text(part.get("refusal")) or ""
    return text, thinking


def _tools(message: Mapping[str, Any]) -> str:
    """The names of the tools that an answer calls."""
    older = message.get("function_call")
    calls = message.get("tool_calls") or ([{"function": older}] if older else [])
    if not isinstance(calls, list):
        return "unnamed"
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
    names = [_text(function.get("name")) if isinstance(function, dict) else None for function in functions]
    return one_line(", ".join(name or "unnamed" for name in names))


def _usage(usage: object) -> dict[str, int] | None:
    """Numbers of tokens, where both are there and are counts."""
    read, written = (
        usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")
    )
    if not isinstance(read, int) or not isinstance(written, int) or min(read, written) < 0:
        return None
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _numbers(value: object) -> list[int] | None:
    return value if isinstance(value, list) and all(isinstance(number, int) for number in value) else None


def _codes(body: object) -> list[object]:
    """The codes and types of an error, Azure's inner ones too."""
    if not isinstance(body, Mapping):
        return []
    inner = body.get("innererror")
    return [body.get("code"), body.get("type"), *(_codes(inner) if isinstance(inner, Mapping) else [])]


def _said(body: object) -> str:
    """Code and message of an error, to be put behind the status."""
    code = next((code for code in _codes(body) if isinstance(code, str) and not code.isdecimal()), "")
    message = error_message(body)
    return (f" {code}" if code else "") + (f": {message}" if message else "")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
