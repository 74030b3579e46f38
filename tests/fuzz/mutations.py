"""Damaged copies of files, each determined by a random generator: bytes, text, and the structures of the formats."""

from __future__ import annotations

import copy
import json
import struct
import tomllib
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

NUMBERS = (0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32)
NUMBERS += (2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
RAW = {
    "@digits@": "9" * 5000,
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@nested@": "[" * 200 + "]" * 200,
    "@objects@": '{"a":' * 5000 + "1" + "}" * 5000,
    "@long@": '"' + "a" * 1_000_000 + '"',
    "@many@": "[" + "0," * 100_000 + "0]",
    "@exponent@": "1e400",
    "@surrogate@": '"\\ud800"',
    "@negative@": "-" + "9" * 25,
}
"""What Python cannot write as JSON: a text that stands for it, put in after writing."""
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *(2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, 10**9, 10**6, 255, 16),
    *("", "a", "0", "-1", "NaN", "None", "null", "../x", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a\0b"),
    *("\ud800", "\x1b[31m", "é", "\u2028", "{{ x }}", "%s", "{0}", "..", ".", "float8_e4m3fn", "bfloat16", "int8"),
    *([], {}, [[]], [None], [1], [0.5], ["a"], {"a": 1}, {"": None}, [1, "a"], [[1, 2], [3]], {"a": {"b": []}}),
    *RAW,
)


def mutate(random: Random, name: str, content: bytes) -> bytes:
    """A damaged copy of a file: as its kind is damaged, or as any bytes are."""
    own = _BY_SUFFIX.get(PurePath(name).suffix, ())
    mutation = random.choice((*own, mutate_bytes)) if random.random() < 0.3 or not own else random.choice(own)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = mutation(random, content)
    return content


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Flip, cut, insert, repeat, replace, or take all away."""
    if not content:
        return random.randbytes(random.randint(0, 64))
    place = random.randrange(len(content))
    if random.random() < 0.5:  # headers stand in front, and are most of what can be wrong
        place = min(place, random.randrange(min(len(content), 512)))
    end = min(len(content), place + random.choice((1, 1, 2, 4, 8, 64, 1024)))
    match random.randrange(8):
        case 0:
            return content[:place] + bytes([content[place] ^ (1 << random.randrange(8))]) + content[place + 1 :]
        case 1:
            return content[:place]
        case 2:
            return content[:place] + content[end:]
        case 3:
            return content[:place] + random.randbytes(end - place) + content[place:]
        case 4:
            return content[:end] + content[place:end] * random.choice((1, 2, 100)) + content[end:]
        case 5:
            return content[:place] + random.randbytes(end - place) + content[end:]
        case 6:
            return content[:place] + bytes([random.choice((0, 255, 10, 13, 34, 123))]) * (end - place) + content[end:]
        case _:
            return random.choice((b"", b"\0" * 64, b"\xff\xfe", b"\xef\xbb\xbf" + content, content + b"\0"))


TOKENS = (
    *("\0", "\r", "\n", "\r\n", "\u2028", "\x85", "\x0b", "\x1c", "\ufeff", '"', "'", ",", ";", "\t", "#", "\\", "="),
    *("[[", "]]", "{", "}", "[", "]", "{{", "}}", "{%", "%}", "$", "$$", "NaN", "inf", "-1", "1e999", "007", "true"),
    *("a" * 200_000, "[" * 300, "[" * 100_000, "9" * 5000, "\x1b[31m", "1979-99-99", '"""', "''' "),
)


def mutate_text(random: Random, content: bytes) -> bytes:
    """Insert or replace by what text formats give a meaning; move, repeat or leave out lines."""
    text = content.decode("utf-8", "replace")
    lines = text.split("\n")
    line = random.randrange(len(lines))
    match random.randrange(6):
        case 0 | 1:
            place = random.randrange(len(text) + 1)
            text = text[:place] + random.choice(TOKENS) + text[place + random.choice((0, 0, 1, 5)) :]
        case 2:
            text = "\n".join([*lines[:line], *lines[line + 1 :]])
        case 3:
            text = "\n".join([*lines[: line + 1], *lines[line:]])
        case 4:
            lines[line] = lines[line].replace(random.choice((" ", ",", "=", '"')), random.choice(TOKENS))
            text = "\n".join(lines)
        case _:
            words = text.split(" ")
            words[random.randrange(len(words))] = random.choice(TOKENS)
            text = " ".join(words)
    return text.encode("utf-8", "surrogatepass")


def mutate_json(random: Random, content: bytes) -> bytes:
    """One value, somewhere, of another type, size or name; missing, or there twice."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(random, content)
    document = _changed(random, document)
    text = json.dumps(document, ensure_ascii=random.random() < 0.9)
    if random.random() < 0.05 and text.startswith("{"):  # the same key twice
        text = text.replace("{", '{"' + random.choice(("a", *_keys(document))) + '": 0, ', 1)
    return _with_raw(text).encode("utf-8", "surrogatepass")


def mutate_toml(random: Random, content: bytes) -> bytes:
    """One value of a TOML document, as `mutate_json` does; tables are written inline."""
    try:
        document = _changed(random, tomllib.loads(content.decode()))
    except (ValueError, RecursionError):
        return mutate_text(random, content)
    if not isinstance(document, dict):
        return mutate_text(random, content)
    lines = [f"{json.dumps(str(key))} = {_inline(value)}" for key, value in document.items() if value is not None]
    return _with_raw("\n".join(lines)).encode("utf-8", "surrogatepass")


def _inline(value: Any) -> str:
    """A value in one line of TOML, which has no null."""
    if isinstance(value, dict):
        pairs = [f"{json.dumps(str(key))} = {_inline(inside)}" for key, inside in value.items() if inside is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(inside) for inside in value if inside is not None) + "]"
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def mutate_lines(random: Random, content: bytes) -> bytes:
    """One line of JSON lines as `mutate_json` does."""
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    lines[place] = mutate_json(random, lines[place])
    return b"\n".join(lines)


def _keys(document: Any) -> list[str]:
    return [key.replace("\\", "").replace('"', "") for key in document] if isinstance(document, dict) else []


def _with_raw(text: str) -> str:
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw, 1)
    return text


def _changed(random: Random, document: Any) -> Any:
    """A copy in which one value is another."""
    document = copy.deepcopy(document)
    holders = [holder for holder in _containers(document) if holder]
    if not holders or random.random() < 0.03:
        return random.choice(HOSTILE)
    # Containers of every depth alike: a large list would otherwise have almost all mutations.
    holder = random.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key = random.choice(keys)
    match random.randrange(12):
        case 0:
            del holder[key]
        case 1:
            if isinstance(holder, dict):
                holder[random.choice(("", "a", "../x", str(key) + "s", str(key).upper()))] = holder.pop(key)
            else:
                holder.append(copy.deepcopy(holder[key]))
        case 2:
            holder[key] = [holder[key]]
        case 3:
            holder[key] = {"a": holder[key]}
        case 4:
            holder[key] = str(holder[key])
        case 5 if isinstance(holder[key], (int, float)):
            holder[key] = holder[key] * random.choice((-1, 2, 0.5, 1000)) + random.choice((0, 1, -1))
        case 6:
            other = random.choice(holders)
            there = list(other) if isinstance(other, dict) else range(len(other))
            holder[key] = copy.deepcopy(other[random.choice(there)])
        case _:
            holder[key] = random.choice(HOSTILE)
    return document


def _containers(document: Any) -> list[Any]:
    found, level = [], [document]
    while level:
        value = level.pop()
        if isinstance(value, (dict, list)):
            found.append(value)
            level.extend(value.values() if isinstance(value, dict) else value)
    return found


def mutate_safetensors(random: Random, content: bytes) -> bytes:
    """The header's JSON (names, types, shapes, offsets), its length, or the tensors' data."""
    length = int.from_bytes(content[:8], "little")
    if length > len(content):
        return mutate_bytes(random, content)
    header, data = content[8 : 8 + length], content[8 + length :]
    match random.randrange(8):
        case 0:
            return random.choice(NUMBERS).to_bytes(8, "little", signed=False) + content[8:]
        case 1:
            return content[: 8 + length] + mutate_bytes(random, data)
        case 2:
            return content[: 8 + length] + _special_numbers(random, data)
        case 3 | 4:
            header = _changed_tensor(random, header)
        case _:
            header = mutate_json(random, header)
    return len(header).to_bytes(8, "little") + header + data


def _changed_tensor(random: Random, header: bytes) -> bytes:
    """One tensor with another type, shape, place or name, all else valid."""
    try:
        tensors = json.loads(header)
    except (ValueError, RecursionError):
        return header
    if not isinstance(tensors, dict):
        return header
    names = [name for name, told in tensors.items() if isinstance(told, dict) and isinstance(told.get("shape"), list)]
    if not names:
        return header
    name = random.choice(names)
    tensor = tensors[name]
    match random.randrange(5):
        case 0:
            tensor["dtype"] = random.choice(DTYPES)
        case 1:
            tensor["shape"] = random.choice((tensor["shape"][::-1], [*tensor["shape"], 1], [1, *tensor["shape"]], []))
        case 2:
            tensor["data_offsets"] = tensors[random.choice(names)].get("data_offsets")
        case 3:
            other = random.choice(names)
            tensors[name], tensors[other] = tensors[other], tensors[name]
        case _:
            old, new = random.choice((("q_proj", "k_proj"), ("0", "1"), ("2", "3"), ("weight", "bias")))
            tensors[name.replace(old, new)] = tensors.pop(name)
    return json.dumps(tensors).encode()


def _special_numbers(random: Random, data: bytes) -> bytes:
    """A few numbers that are NaN, infinite, zero or as large as they can be, in some width."""
    pattern = random.choice((b"\0\0", b"\xff\xff", b"\0\x7c", b"\0\xfc", b"\x80\x7f", b"\xff\x7f", b"\0\x80"))
    place = 2 * random.randrange(len(data) // 2 + 1)
    count = random.choice((1, 2, 16, 256))
    return (data[:place] + pattern * count + data[place + 2 * count :])[: len(data)]


DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U32", "BOOL", "F8_E4M3")
GGUF_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a GGUF value → its bytes; 8 is a text, 9 an array."""


def mutate_gguf(random: Random, content: bytes) -> bytes:
    """One number of the header (a count, a length, a type, a value, a dimension, an offset), or a text, or the data."""
    try:
        fields = _gguf_fields(content)
    except (struct.error, IndexError, KeyError):
        return mutate_bytes(random, content)
    if random.random() < 0.1:
        end = max(place + width for place, width in fields)
        return content[:end] + _special_numbers(random, content[end:])
    place, width = random.choice(fields)
    if width not in (1, 2, 4, 8) or random.random() < 0.1:
        return content[:place] + random.randbytes(width) + content[place + width :]
    now = int.from_bytes(content[place : place + width], "little")
    value = random.choice((*NUMBERS, now + 1, now - 1, now * 2, now // 2, -now)) % (1 << (8 * width))
    return content[:place] + value.to_bytes(width, "little") + content[place + width :]


def _gguf_fields(content: bytes) -> list[tuple[int, int]]:
    """Place and width of everything in the header of a GGUF file of version 3."""
    fields = [(4, 4), (8, 8), (16, 8)]
    place = 24

    def number(width: int) -> int:
        nonlocal place
        fields.append((place, width))
        place += width
        if place > len(content):
            raise IndexError
        return int.from_bytes(content[place - width : place], "little")

    def text() -> None:
        if length := number(8):
            number(length)

    def value(kind: int) -> None:
        if kind == 8:
            text()
        elif kind == 9:
            inside, count = number(4), number(8)
            for _ in range(count):
                value(inside)
        else:
            number(GGUF_WIDTHS[kind])

    n_tensors, n_fields = (int.from_bytes(content[at : at + 8], "little") for at in (8, 16))
    for _ in range(n_fields):
        text()
        value(number(4))
    for _ in range(n_tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return fields


_BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".json": (mutate_json,),
    ".jsonl": (mutate_lines, mutate_lines, mutate_text),
    ".safetensors": (mutate_safetensors,),
    ".gguf": (mutate_gguf,),
    ".toml": (mutate_toml, mutate_text),
    ".csv": (mutate_text,),
    ".txt": (mutate_text,),
    ".jinja": (mutate_text,),
}
