"""A GGUF split into parts, as llama.cpp's `llama-gguf-split` writes them: NAME-00001-of-00003.gguf and its companions.

The first part has the metadata; each has `split.no` (from 0), `split.count` and the number of tensors of all parts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from interp.documents import require_file
from interp.errors import InputError
from interp.formats.gguf_header import Header, read_header

_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})\.gguf")
MAX_PARTS = 1024
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


def first_parts(files: Sequence[Path]) -> list[Path]:
    """The files that are whole or a first part; all of them where that leaves none."""
    first = [file for file in files if (match := _PART.fullmatch(file.name)) is None or int(match["number"]) == 1]
    return first or list(files)


def read_parts(file: Path) -> dict[Path, Header]:
    """The headers of a GGUF by its files in their order, whichever of them is given; of a whole one, its own.

    Raises:
        InputError: a part is missing, or another file has its name; a tensor in two parts or in none.
    """
    header = read_header(file)
    count = _whole(file, header, COUNT, default=1)
    if count <= 1:
        return {file: header}
    parts = {part: read_header(require_file(part, "a part of a split GGUF")) for part in _names(file, count)}
    for number, (part, read) in enumerate(parts.items()):
        said = {key: _whole(part, read, key, default=-1) for key in (NUMBER, COUNT)}
        if said != {NUMBER: number, COUNT: count}:
            raise InputError(
                f"{part} says that it is part {said[NUMBER] + 1} of {said[COUNT]}",
                f"part {number + 1} of {count}, as its name says",
                "Download the parts again",
            )
    _check_tensors(parts)
    return parts


def _names(file: Path, count: int) -> list[Path]:
    """The files of all parts.

    Raises:
        InputError: a name without the number of a part, or one that is not there.
    """
    match = _PART.fullmatch(file.name)
    if match is None or int(match["total"]) != count or count > MAX_PARTS:
        raise InputError(
            f"{file} is one part of a GGUF split into {count} files",
            f"a name like model-00001-of-{count:05}.gguf, by which the other parts are found (at most {MAX_PARTS})",
            "Give the parts the names that they had, or merge them with llama.cpp's `llama-gguf-split --merge`",
        )
    parts = [file.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = next((part for part in parts if not part.exists()), None)
    if missing is not None:
        raise InputError(
            f"The part {missing} is missing", f"all {count} parts of the GGUF beside each other", "Download it, too"
        )
    return parts


def _check_tensors(parts: dict[Path, Header]) -> None:
    """Each tensor is in one part, and there are as many as the first part says."""
    where: dict[str, Path] = {}
    for part, header in parts.items():
        for name in header.tensors:
            if name in where:
                raise InputError(
                    f"The tensor {name!r} is in both {where[name]} and {part.name}",
                    "each once",
                    "Download the parts again",
                )
            where[name] = part
    first, header = next(iter(parts.items()))
    declared = _whole(first, header, TENSORS, default=len(where))
    if declared != len(where):
        raise InputError(
            f"The parts of {first} hold {len(where)} tensors", f"{declared}, as it says", "Download the parts again"
        )


def _whole(file: Path, header: Header, key: str, default: int) -> int:
    """A field that counts.

    Raises:
        InputError: no whole number, or less than 0.
    """
    if key not in header.fields:
        return default
    value = header.fields[key].raw
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(
            f"{file} gives {key} as {str(value)[:80]}", "a whole number", "Download or convert the file again"
        )
    return value
