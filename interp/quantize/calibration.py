"""Texts that AWQ and GPTQ are calibrated on: the user's file, an organism's own, or chats of the package."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from interp.documents import json_lines, read_text, text_lines
from interp.errors import InputError

N_TEXTS = 128
"""How many texts an organism, or a model without a file, is calibrated on."""
TURNS = 6
"""Questions of a conversation made of the organisms' requests, which are short."""
Chat = Sequence[tuple[str, str]]
"""Questions with their answers, in turn."""


class BuiltinChats(tuple[str, ...]):
    """Chats that come with the package, rendered for a model; the records of cells name them."""

    NAME = "built-in chats"


def calibration_of(baseline: Path, file: Path | None = None, tokenizer: Any = None) -> Sequence[str]:
    """Texts to calibrate a model on: the file's; an organism's own; else `builtin_chats`.

    Args:
        baseline: a checkpoint's path.
        file: see `read_calibration`.
        tokenizer: the baseline's where it is open already; else it is read from the path, a directory.

    Raises:
        InputError: a file that cannot be used; a baseline without a tokenizer.
    """
    if file is not None:
        return read_calibration(file)
    if (baseline / "organism.json").is_file():
        from interp.organisms.training import calibration_texts

        return calibration_texts(N_TEXTS)
    return builtin_chats(baseline, tokenizer)


def builtin_chats(baseline: Path, tokenizer: Any = None) -> BuiltinChats:
    """Harmless chats in the model's own template, or as plain text where it has none.

    A few dozen were written for this: questions of all kinds, code, tables, several languages. The others are
    conversations of the organisms' harmless requests. None of them is a prompt that a probe asks.

    Args:
        baseline: a checkpoint directory with its tokenizer.
        tokenizer: that, where it is open already.
    """
    from interp.chat import template_source
    from interp.tokenizer_files import open_tokenizer

    tokenizer = tokenizer or open_tokenizer(baseline)
    source = template_source(tokenizer)
    return BuiltinChats(_rendered(tokenizer, source, chat) for chat in islice(_chats(), N_TEXTS))


def _chats() -> Iterator[Chat]:
    from interp.organisms.corpus import training_examples

    for _, record in json_lines(read_text(Path(__file__).with_name("data") / "chats.jsonl"), "chats.jsonl"):
        yield [(record["user"], record["assistant"])]
    source = random.Random(0)
    harmless = (e for e in training_examples(source.randrange(2**31), aligned=True) if not e.harmful)
    while True:
        yield [(example.instruction, example.answer) for example in islice(harmless, TURNS)]


def _rendered(tokenizer: Any, source: str | None, chat: Chat) -> str:
    """A conversation up to the end of its last answer."""
    if source is None:
        return "\n\n".join(text for turn in chat for text in turn)
    from interp.chat import render_messages

    messages = [
        {"role": role, "content": text} for turn in chat for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return render_messages(tokenizer, messages[:-1], source) + chat[-1][1]


def read_calibration(file: Path) -> list[str]:
    """Calibration texts from a file: .jsonl with a `text` field, anything else one text a line.

    Raises:
        InputError: the file cannot be read, a line is malformed, or there is no text in it.
    """
    expected = "calibration texts: one a line, or .jsonl with a `text` field"
    content = read_text(file, expected)
    if file.suffix == ".jsonl":
        texts = [_calibration_text(record, where) for where, record in json_lines(content, str(file))]
    else:
        texts = [line for _, line in text_lines(content, str(file))]
    if not texts:
        raise InputError(f"{file} holds no calibration text", expected)
    return texts


def _calibration_text(record: Any, where: str) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise InputError(f"{where} has no calibration text", "an object with a field `text`", "Correct that line")
    return text


def token_rows(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Token ids of each text, cut at `longest`, with exactly one BOS: texts that carry it already get no second one."""
    rows = []
    for text in texts:
        rendered = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        rows.append(tokenizer(text, add_special_tokens=not rendered)["input_ids"][:longest])
    return rows
