"""Text, JSON, JSON lines and TOML from outside: every one of them is read here, so that every one is bounded.

A file that comes from somebody else may be a pipe that never ends, nested until the parser's stack is gone, or hold an
integer of a million digits. Here such a file ends in an `InputError` that names the place, before anything is made of
it. What keys an object must have and of which types is said by a pydantic model and checked by `checked`.
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from interp.errors import InputError, what_lies_beside

MAX_NESTING = 64
"""Objects and lists inside each other; the deepest file of the ecosystem (tokenizer.json) has about ten."""
MAX_INTEGER = 2**64
"""No count, id or size of a checkpoint is as large; an integer beyond it breaks arithmetic in NumPy and PyTorch."""
UNLIMITED = int(1e30)
"""What transformers writes as the longest text of a tokenizer that has no limit; let through as it is."""
MAX_BYTES = 2**30
"""A text file larger than a gigabyte is not what it is taken for."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""A surrogate, escaped or not; most are half of a pair that is whole."""

Schema = TypeVar("Schema", bound=BaseModel)


def require_file(path: Path, expected: str = "a file") -> Path:
    """`path`, if it is a regular file: reading a pipe or a device may never end.

    Args:
        path: what is about to be read.
        expected: what it should be, for the message.

    Raises:
        InputError: it is missing, or is a directory, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason})", expected, what_lies_beside(path)) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise InputError(f"{path} is {kind}", expected, "Give the path of a regular file")
    return path


def read_text(path: str | Path, expected: str = "a UTF-8 text file", max_bytes: int = MAX_BYTES) -> str:
    """The text of a file, line ends as they are, a byte order mark left out.

    Args:
        path: the file.
        expected: what it should be, for the message.
        max_bytes: a larger file is refused unread.

    Raises:
        InputError: missing, not a regular file, too large, unreadable, or not UTF-8.
    """
    path = require_file(Path(path), expected)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise InputError(f"{path} has {size:,} bytes", f"{expected} of at most {max_bytes:,} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start} cannot be decoded)", expected, "Save it again in UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", expected) from error


def parse_json(text: str | bytes, where: str, unique_keys: bool = False) -> Any:
    """A JSON document.

    Args:
        text: the document.
        where: names it in messages, e.g. "model/config.json" or "answers.jsonl, line 3,".
        unique_keys: refuse an object with a key twice, of which parsers keep one.

    Raises:
        InputError: not JSON, nested deeper than `MAX_NESTING`, with an integer of more than 64 bits, a key twice, or
            half of a surrogate pair, which no UTF-8 file and no tokenizer can hold.
    """
    try:
        hook = _without_repetition if unique_keys else None
        document = json.loads(text, parse_int=_bounded_integer, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}," if error.lineno > 1 else ""
        problem = f"{where}{line} is not valid JSON ({error.msg}, column {error.colno})"
        raise InputError(problem, do="Correct it") from error
    except RecursionError as error:
        _too_deep(where, error)
    except ValueError as error:  # an integer out of bounds, bytes in no known encoding
        raise InputError(f"{where} is not usable JSON ({error})", do="Correct it") from error
    _check_nesting(text, document, where)
    _check_surrogates(text, document, where)
    return document


def read_json(path: str | Path, expected: str = "a JSON file") -> Any:
    """The JSON document in a file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, expected), str(path))


def read_json_object(path: str | Path, expected: str = "a JSON object") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: as `read_text` and `parse_json`, or the document is something other than an object.
    """
    document = read_json(path, expected)
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a JSON {type(document).__name__}", expected)
    return document


def text_lines(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, with its place, "NAME, line 3,"; a carriage return at its end is left out.

    Lines end at line feeds alone: a request may hold U+2028, a vertical tab or a carriage return.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}, line {number},", line.removesuffix("\r")


def json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Each document of JSON lines with its place, "NAME, line 3,"; blank lines are skipped.

    Raises:
        InputError: see `parse_json`.
    """
    for where, line in text_lines(text, name):
        yield where, parse_json(line, where)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """A TOML document.

    Raises:
        InputError: not TOML, nested deeper than `MAX_NESTING`, or with an integer of more than 64 bits.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where} is not valid TOML ({error})", do="Correct it") from error
    except RecursionError as error:
        _too_deep(where, error)
    except (ValueError, OverflowError) as error:  # an integer of too many digits, a date that is none
        raise InputError(f"{where} is not usable TOML ({error})", do="Correct it") from error
    _check_nesting(text, document, where)
    for value in _leaves(document):
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise InputError(f"{where} holds an integer of more than 64 bits", do="Correct it")
    return document


def checked(schema: type[Schema], content: Any, where: str) -> Schema:
    """`content` as an instance of `schema`, with the first thing that does not fit as the message.

    Args:
        schema: a pydantic model of the keys that are used; give it `extra="allow"` where others may be there.
        content: what was parsed.
        where: names the document in the message.

    Raises:
        InputError: a key is missing or its value is of another type or out of range.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "it"
        input_repr = repr(first["input"])
        raise InputError(
            f"{where}: {key} is {input_repr if len(input_repr) <= 80 else input_repr[:77] + '…'} ({first['msg']})",
            do="Restore the file as it was written",
        ) from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; the parser hands on its keys and values."""
    document = dict(pairs)
    if len(document) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is there more than once")
    return document


def _bounded_integer(digits: str) -> int:
    """An integer of a JSON document; the parser hands on its text."""
    if len(digits) <= 31 and (abs(number := int(digits)) < MAX_INTEGER or number == UNLIMITED):
        return number
    raise ValueError(f"an integer of {len(digits)} digits is larger than 64 bits")


def _check_nesting(text: str | bytes, document: Any, where: str) -> None:
    opening = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, opening)) <= MAX_NESTING:  # type: ignore[arg-type]
        return
    level = [document]
    for _ in range(MAX_NESTING):
        level = [child for parent in level for child in _children(parent) if isinstance(child, (dict, list))]
        if not level:
            return
    _too_deep(where)


def _check_surrogates(text: str | bytes, document: Any, where: str) -> None:
    if isinstance(text, str) and not _SURROGATE.search(text):
        return
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(
            f"{where} holds half of a surrogate pair ({half})",
            "whole characters",
            "It was cut within one, by a program that counts in UTF-16: write it again",
        ) from error


def _children(value: Any) -> list[Any]:
    """What stands directly inside a list or an object; nothing for a leaf."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _leaves(document: Any) -> Iterator[Any]:
    level = [document]
    while level:
        value = level.pop()
        if isinstance(value, (dict, list)):
            level.extend(_children(value))
        else:
            yield value


def _too_deep(where: str, cause: BaseException | None = None) -> NoReturn:
    raise InputError(f"{where} is nested more than {MAX_NESTING} deep", do="Correct it") from cause
