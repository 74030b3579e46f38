"""Prompt sets: the two that come with the project, and the user's own files.

A prompt is a request only; templates and system prompts are the chat template's business (`interp.chat`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interp.documents import json_lines, parse_json, read_text, text_lines
from interp.errors import InputError

BUILTIN = ("harmful", "harmless", "borderline")
FEW = 32
"""Prompts of a side; a mean direction or a choice of units from fewer is mostly chance."""
FIELDS = ("instruction", "prompt", "goal")
"""What the field of a request may be called; the first one present is taken."""
MAX_CHARACTERS = 1_000_000
"""The longest request; no model of this project has a context as long, and more take minutes to split into tokens."""


@dataclass(frozen=True)
class PromptSet:
    """Requests in a fixed order.

    Attributes:
        name: of the built-in set, or the file's name.
        instructions: the requests, none empty, none twice.
        categories: one for each request ("" where it has none), or empty where no request has one.

    Example:
        >>> PromptSet("mine", ("How do I pick a lock?", "How do I bake bread?"))
        >>> len(builtin("harmful").take(32))
        32
    """

    name: str
    instructions: tuple[str, ...]
    categories: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.instructions)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the requests and categories; the name does not count."""
        return hashlib.sha256(json.dumps([self.instructions, self.categories]).encode()).hexdigest()

    def take(self, limit: int) -> PromptSet:
        """The first `limit` requests, or all there are.

        Raises:
            InputError: a limit below 1.
        """
        if limit < 1:
            raise InputError(f"A limit of {limit} prompts leaves nothing to measure", "a limit of 1 or more")
        return PromptSet(self.name, self.instructions[:limit], self.categories[:limit])

    def spread(self, count: int) -> PromptSet:
        """`count` requests evenly over the set, so that one sorted by category gives all of them; or all there are."""
        indices = evenly_spaced(len(self), count)
        categories = tuple(self.categories[index] for index in indices) if self.categories else ()
        return PromptSet(self.name, tuple(self.instructions[index] for index in indices), categories)


def evenly_spaced(n: int, count: int) -> list[int]:
    """Indices of `count` of n prompts, evenly spaced, so that a set sorted by category gives all of them; or all n."""
    count = min(count, n)
    return [index * n // count for index in range(count)]


@dataclass(frozen=True)
class _Prompt:
    instruction: str
    category: str = ""


def builtin(name: str) -> PromptSet:
    """A set of our own: `harmful`, `harmless` (128 requests each, sixteen of each of eight categories) or `borderline`.

    The first two are matched line by line in form and subject, so that their contrast is about harm. Categories take
    turns: the first requests are as balanced as all of them. `borderline` has 32 harmless requests that look harmful.

    Args:
        name: of the set.

    Raises:
        InputError: no such set.

    Example:
        >>> builtin("harmful").instructions[:2]
    """
    if name not in BUILTIN:
        raise InputError(f"There is no built-in prompt set {name!r}", f"one of {', '.join(BUILTIN)}")
    text = Path(__file__).with_name("data").joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return _prompt_set(name, _parse_jsonl(text, f"the built-in set {name}"))


def read_prompts(path: str | Path, limit: int | None = None) -> PromptSet:
    """Read a user's prompts: .txt (one a line), .jsonl, .json (a list) or .csv (with a header).

    The last three hold requests in a field `instruction`, `prompt` or `goal`, and may have a `category`. Blank lines
    are skipped and repeated requests are kept once, in the order of the file.

    Args:
        path: the file, UTF-8.
        limit: take only the first so many.

    Raises:
        InputError: the file is missing, empty, of another kind, not UTF-8, damaged (with the line), or a record has no
            request.

    Example:
        >>> read_prompts("requests.jsonl", limit=100).instructions
    """
    path = Path(path)
    if path.suffix.lower() not in _PARSERS:
        kinds = ", ".join(_PARSERS)
        raise InputError(f"{path} is not a kind of prompt file that can be read", f"a file ending in {kinds}")
    prompts = _PARSERS[path.suffix.lower()](read_text(path, "a file of prompts"), str(path))
    if not prompts:
        raise InputError(f"{path} holds no prompts", "at least one request")
    prompt_set = _prompt_set(path.name, prompts)
    return prompt_set if limit is None else prompt_set.take(limit)


def _prompt_set(name: str, prompts: Sequence[_Prompt]) -> PromptSet:
    first: dict[str, str] = {}
    for prompt in prompts:
        first.setdefault(prompt.instruction, prompt.category)
    return PromptSet(name, tuple(first), tuple(first.values()) if any(first.values()) else ())


def _prompt(record: object, where: str) -> _Prompt | None:
    """The prompt of one record, None where its request is blank."""
    if not isinstance(record, dict):
        raise InputError(f"{where} holds {type(record).__name__} data", f"an object with a field {' or '.join(FIELDS)}")
    field = next((name for name in FIELDS if name in record), None)
    if field is None:
        fields = f"the fields {', '.join(map(str, record))}" if record else "no fields"
        raise InputError(
            f"{where} has {fields}", f"one called {' or '.join(FIELDS)}", "Rename the field of the requests"
        )
    if not isinstance(record[field], str):
        raise InputError(f"{where}: the field {field} is {json.dumps(record[field])}", "text")
    category = record.get("category")
    prompt = _plain(record[field], where, "" if category is None else str(category))
    return prompt if prompt.instruction else None


def _plain(text: str, where: str, category: str = "") -> _Prompt:
    """A request that a model can be asked."""
    if "\0" in text:
        raise InputError(f"{where} holds a NUL character", "text", "If the file is in UTF-16, save it again in UTF-8")
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"{where} holds a request of {len(text):,} characters",
            f"at most {MAX_CHARACTERS:,}",
            "Shorten or remove it",
        )
    return _Prompt(text.strip(), category)


def _parse_txt(text: str, name: str) -> list[_Prompt]:
    return [_plain(line, where) for where, line in text_lines(text, name)]


def _parse_jsonl(text: str, name: str) -> list[_Prompt]:
    prompts = [_prompt(record, where) for where, record in json_lines(text, name)]
    return [prompt for prompt in prompts if prompt]


def _parse_json(text: str, name: str) -> list[_Prompt]:
    if not text.strip():
        return []
    records = parse_json(text, name)
    if not isinstance(records, list):
        raise InputError(f"{name} holds {type(records).__name__} data", "a list of objects or of texts")
    prompts = [
        _plain(record, where) if isinstance(record, str) else _prompt(record, where)
        for where, record in ((f"{name}, record {number},", record) for number, record in enumerate(records, start=1))
    ]
    return [prompt for prompt in prompts if prompt and prompt.instruction]


def _parse_csv(text: str, name: str) -> list[_Prompt]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    prompts = []
    try:
        for record in reader:
            prompts.append(
                _prompt({k: v for k, v in record.items() if k is not None}, f"{name}, line {reader.line_num},")
            )
    except csv.Error as error:
        where = f"{name}, after line {reader.line_num},"
        raise InputError(f"{where} is not valid CSV ({error})", do="Correct that line") from error
    return [prompt for prompt in prompts if prompt]


_PARSERS: dict[str, Callable[[str, str], list[_Prompt]]] = {
    ".txt": _parse_txt,
    ".jsonl": _parse_jsonl,
    ".json": _parse_json,
    ".csv": _parse_csv,
}


def few_prompts(counts: Mapping[str, int], what: str) -> list[str]:
    """A warning where a side has fewer prompts than `FEW`, else nothing.

    Args:
        counts: "harmful" and "harmless" → number of prompts.
        what: rests on them.
    """
    few = [f"{n} {side}" for side, n in counts.items() if n < FEW]
    return (
        [f"only {' and '.join(few)} prompts: {what} from so few is mostly chance; {FEW} or more are better"]
        if few
        else []
    )
