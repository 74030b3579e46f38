"""What a model thinks before it answers, taken out of its text.

Models mark their thoughts in several ways, listed in `FORMS`; gpt-oss writes messages on channels instead. A thought
may also have been opened where we cannot see it (by a server's template), so that only its end is in the text, and a
decoder that drops special tokens leaves of channels their names only, glued to the text: `analysis…assistantfinal…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple


class Thought(NamedTuple):
    """A completion in its two parts.

    Attributes:
        thinking: without its marks; "" where there is none.
        answer: what a user reads; "" where the completion was cut while thinking.
    """

    thinking: str
    answer: str


class Form(NamedTuple):
    """How a thought is marked: patterns of what opens it and of what closes it."""

    opening: re.Pattern[str]
    closing: re.Pattern[str]


def _form(opening: str, closing: str) -> Form:
    return Form(re.compile(opening, re.IGNORECASE), re.compile(closing, re.IGNORECASE))


_NAME = r"(?:\w+:|longcat_)?(?:think(?:ing)?|thoughts?|reasoning|scratchpad|inner_monologue)"
"""What tags are called; a prefix as in `<seed:think>` and `<longcat_think>` may come before it."""

FORMS: dict[str, Form] = {
    "tags": _form(rf"<\|?{_NAME}(?:\s[^<>]*)?\|?>", rf"<\|?/\s*{_NAME}\s*\|?>"),  # DeepSeek-R1, Qwen3, EXAONE, Seed-OSS
    "brackets": _form(rf"\[{_NAME}\]", rf"\[/{_NAME}\]"),  # Magistral
    "triangles": _form(rf"◁{_NAME}▷", rf"◁/{_NAME}▷"),  # Kimi
    "begin and end": _form(  # OpenThinker, Sky-T1
        r"<\|(?:begin|start)_of_(?:thought|thinking|reasoning)\|>", r"<\|end_of_(?:thought|thinking|reasoning)\|>"
    ),
    "start and end": _form(r"<\|start_thinking\|>", r"<\|end_thinking\|>"),  # Command A Reasoning
    "thought channel": _form(r"<\|channel>thought\b", r"<channel\|>"),  # Gemma 4
    "unused tokens": _form(r"<unused94>(?:thought\b)?", r"<unused95>"),  # MedGemma
}
"""Marks of thoughts by a word for them, with models that write them. Upper and lower case are the same."""

_MENTIONS = 20
"""So many ends without a beginning are looked at before a text is taken to speak of them."""

_ANSWER_MARK = r"(?:<\|(?:begin|end)_of_solution\|>|<\|(?:start|end)_(?:response|text)\|>|</?(?:answer|response)>)"
_WRAPPER = re.compile(_ANSWER_MARK, re.IGNORECASE)
_WRAPPER_END = re.compile(rf"\s*{_ANSWER_MARK}\s*\Z", re.IGNORECASE)
"""Marks of the answer; they are taken off where it begins or ends after a thought."""

_CHANNEL_MARK = re.compile(r"<\|(?:start|channel|constrain|message|end|return|call)\|>")
_HEADER = re.compile(
    r"(?:<\|start\|>(?P<role>[^<]*))?(?:<\|channel\|>(?P<channel>[^<]*))?(?:<\|constrain\|>[^<]*)?<\|message\|>"
)
_MESSAGE_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_FINAL_HEADER = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>")
_FINAL = "final"
"""The channel that a user reads (the "harmony" format of gpt-oss); analysis and commentary are not shown."""

_STRIPPED = re.compile(r"assistant\n?(analysis|commentary|final)(?=\S|\n|$)")
_STRIPPED_START = re.compile(r"\s*(?:assistant)?(analysis|commentary)")
_STRIPPED_CUT = re.compile(
    r"\s*(?:assistant)?(?:analysis|commentary)"
    r"(?=[\"“]|(?:The|We|User|I|It|This|Need|They|Let|Must|Okay|Ok|So|Just|Request|Policy|Should|Simple|You|He|She|A|An"
    r"|According|Answer|As|Ask|Asks|Asking|Based|Check|Compute|Could|Disallowed|Explain|First|For|Give|Given|Harmful|Here"
    r"|Hmm|How|If|Illicit|In|Likely|List|Looks|Maybe|No|Now|Per|Potentially|Probably|Produce|Provide|Question|Refuse"
    r"|Respond|Seems|Sounds|Straightforward|Summarize|That|There|These|To|Wait|What|Write|Yes)\b(?!\s?(?:[=(\[]|\.\w)))"
)
"""A channel's name glued to the first word of a thought, as in "analysisWe need to …"; names in code are not."""


def split_thinking(prompt: str, completion: str) -> Thought:
    """Take what a model thinks out of a completion.

    Only what stands first is thinking: the same marks later in an answer are text, and an answer without a thought
    comes back as it was. Several thoughts one after the other are all taken out; one within another belongs to it.

    Args:
        prompt: what the model was given, as rendered: some templates open the thought at its end; "" where unknown.
        completion: with the marks, also where they are special tokens; see `decode_answer`.
    """
    channel_thought = _channels(prompt, completion) or _stripped_channels(completion)
    if channel_thought is not None:
        return channel_thought
    opened = next((form for form in FORMS.values() if _ends_with(form.opening, prompt)), None)
    form, end = (opened, 0) if opened else _leading(completion)
    if form is None:
        return _unopened(completion) or Thought("", completion)
    thoughts: list[str] = []
    text = completion
    while form is not None:
        thought, text = _closed(form, text[end:])
        thoughts.append(thought)
        form, end = _leading(text)
    return _thought(thoughts, text)


def marks_thinking(token: str) -> bool:
    """Whether a special token opens or closes a thought or an answer, or belongs to a channel."""
    patterns = [pattern for form in FORMS.values() for pattern in form]
    return any(pattern.fullmatch(token) for pattern in (*patterns, _WRAPPER, _CHANNEL_MARK))


def decode_answer(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of generated tokens: without special tokens, but with those that mark thoughts and channels."""
    special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    has_channels = "<|channel|>" in special.values()  # elsewhere <|end|> and its like only end a turn
    dropped = {
        number
        for number, token in special.items()
        if not marks_thinking(token) or (_CHANNEL_MARK.fullmatch(token) and not has_channels)
    }
    remaining_tokens = [token for token in tokens if token not in dropped]
    return str(tokenizer.decode(remaining_tokens, clean_up_tokenization_spaces=False))


def _thought(thoughts: Sequence[str], answer: str) -> Thought:
    """The parts without white space and marks around them."""
    answer = answer.lstrip()
    if start := _WRAPPER.match(answer):
        answer = answer[start.end() :].lstrip()
    if end := _WRAPPER_END.search(answer):
        answer = answer[: end.start()]
    return Thought("\n".join(thought.strip() for thought in thoughts if thought.strip()), answer)


def _ends_with(opening: re.Pattern[str], prompt: str) -> bool:
    end = prompt.rstrip()[-80:]  # longer than any mark
    return any(mark.end() == len(end) for mark in opening.finditer(end))


def _leading(text: str) -> tuple[Form | None, int]:
    """The form of a thought that opens at the beginning of a text, and where its mark ends."""
    start = len(text) - len(text.lstrip())
    for form in FORMS.values():
        if mark := form.opening.match(text, start):
            return form, mark.end()
    return None, 0


def _closed(form: Form, text: str) -> tuple[str, str]:
    """What an opened thought holds, and what comes after it.

    Thoughts within it are counted. Where the count does not come out, because a mark is only mentioned or written
    twice, the last one closes it.
    """
    marks = [(mark, 1) for mark in form.opening.finditer(text)] + [(f, -1) for f in form.closing.finditer(text)]
    depth, last = 1, None
    for mark, step in sorted(marks, key=lambda pair: pair[0].start()):
        depth += step
        if step < 0:
            last = mark
            if depth == 0:
                break
    return (text, "") if last is None else (text[: last.start()], text[last.end() :])


def _unopened(text: str) -> Thought | None:
    """A thought of which the text holds the end only."""
    for form in FORMS.values():
        spoken_of = form.opening.search(text)  # after it, the text speaks of both marks
        until = spoken_of.start() if spoken_of else len(text)
        for mark in islice(form.closing.finditer(text, 0, until), _MENTIONS):
            if _closes(text, mark):
                return _thought([text[: mark.start()]], text[mark.end() :])
    return None


def _closes(text: str, mark: re.Match[str]) -> bool:
    """Whether a mark ends what stands before it, and is not a word of a sentence, quoted or code."""
    before, after = text[: mark.start()], text[mark.end() :]
    if before.count("```") % 2 or before.endswith(("`", '"', "'", "“", "‘")) or after.startswith(("`", '"', "'", "”")):
        return False
    if not before.strip() or before.endswith("\n") or re.match(r"[^\S\n]*\n", after):
        return True
    if before[-1].isalnum() and re.match(r"\w|\s+[A-Z]", after):
        return True  # written without a space before it, as no word of a sentence is
    sentence_ends = before.rstrip().endswith((".", "!", "?", "…", ":", ";", ")", "。", "!", "?"))
    return sentence_ends and not re.match(r"\s*[a-z.,;:!?)]", after)


def _channels(prompt: str, completion: str) -> Thought | None:
    """The messages of gpt-oss by channel; None where the text holds none."""
    header = re.search(r"<\|channel\|>(?:[^<]*<\|message\|>)?$", prompt.rstrip())
    text = (header.group() if header else "") + completion
    start = len(text) - len(text.lstrip())
    if not text.startswith(("<|channel|>", "<|start|>assistant"), start):
        final = _FINAL_HEADER.search(text)
        if final is None or "`" in text[max(0, final.start() - 1) : final.start()]:
            return None
    messages = list(_messages(text))
    answers = [content for channel, content in messages if channel == _FINAL]
    return _thought([content for channel, content in messages if channel != _FINAL], "\n".join(answers))


def _messages(text: str) -> Iterator[tuple[str, str]]:
    """Channel and content of each message; what stands before the first mark belongs to a thought opened elsewhere."""
    first = _CHANNEL_MARK.search(text)
    yield "analysis", text[: first.start()] if first else text
    for header in _HEADER.finditer(text):
        end = _MESSAGE_END.search(text, header.end())
        words = (header["channel"] or "").split()
        assistant = (header["role"] or "assistant").strip().startswith("assistant")
        channel = words[0].lower() if words else _FINAL
        yield (channel if assistant else "other"), text[header.end() : end.start() if end else None].strip()


def _stripped_channels(text: str) -> Thought | None:
    """The same after a decoder dropped the special tokens; None where the text does not look like it."""
    started = _STRIPPED_START.match(text)
    marks = list(_STRIPPED.finditer(text))
    final = next((mark for mark in marks if mark[1] == _FINAL), None)
    if started and final:
        thoughts = _STRIPPED.sub("\n", text[started.end() : final.start()])
        return _thought([thoughts], text[final.end() :])
    if final and (not text[: final.start()].strip() or text[: final.start()].endswith((".", "!", "?", '"', ")", "\n"))):
        return _thought([_STRIPPED.sub("\n", text[: final.start()])], text[final.end() :])
    cut = _STRIPPED_CUT.match(text)
    return _thought([_STRIPPED.sub("\n", text[cut.end() :])], "") if cut else None
