"""The headers of a directory's safetensors files: which files there are, and what they say of their tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from interp.documents import checked, parse_json, read_json, require_file
from interp.errors import InputError

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]+)-of-(?P<total>[0-9]+)\.safetensors$")
LONGEST_NAME = 200
"""Characters of a file's name; file systems hold 255 bytes."""
HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header, as the library itself bounds it."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Floating-point types → bytes."""


@dataclass(frozen=True)
class DenseHeader:
    """What a header says of a tensor of floating-point numbers."""

    shape: tuple[int, ...]
    n_bytes: int


def read_dense_headers(directory: Path) -> tuple[dict[str, DenseHeader], list[Path]] | None:
    """Every tensor by name, and the files; None where one is of another type, or in two files.

    Raises:
        InputError: no safetensors file, a damaged one, or one that the index does not agree with.
    """
    index = directory / INDEX
    promised = read_index(index) if index.exists() else {}
    files = sorted({directory / file for file in promised.values()}) if promised else safetensors_files(directory)
    stored = [(file, name, header) for file in files for name, header in _headers(file).items()]
    headers = {name: header for _, name, header in stored if header is not None}
    places = {name: file.name for file, name, _ in stored}
    agree = not promised or promised == places
    return (headers, files) if agree and len(headers) == len(stored) else None


def _headers(file: Path) -> dict[str, DenseHeader | None]:
    require_file(file, "a safetensors file")
    refuse_repeated_names(file)
    try:
        with safe_open(file, framework="np") as handle:
            pieces = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 — no mapping
            known = {name: (piece.get_dtype(), tuple(piece.get_shape())) for name, piece in pieces.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or is not a safetensors file ({error})") from error
    return {
        name: DenseHeader(shape, SIZES[dtype] * prod(shape)) if dtype in SIZES else None
        for name, (dtype, shape) in known.items()
    }


class _Index(BaseModel, extra="allow", strict=True):
    weight_map: dict[str, str]


def read_index(index: Path) -> dict[str, str]:
    """Tensor → file, by the index.

    Raises:
        InputError: not an index, or one that names something other than a file beside it.
    """
    named = checked(_Index, read_json(index, "a safetensors index"), f"{index} is not a safetensors index").weight_map
    if not named:
        raise InputError(
            f"{index} names no tensor", "a 'weight_map' of tensors and their files", "Download the file again"
        )
    for tensor, file in named.items():
        plain = PurePosixPath(file).name == file and "\\" not in file and "\0" not in file
        if not plain or not file.endswith(".safetensors") or len(file) > LONGEST_NAME:
            raise InputError(
                f"{index} says that the tensor {tensor!r} is in {file!r}",
                "the plain name of a safetensors file in the same directory",
                "Download the file again",
            )
    return named


def refuse_repeated_names(file: Path) -> None:
    """Of a name that a header holds twice, the library keeps one tensor."""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        header = stored.read(min(length, HEADER_LIMIT))
    parse_json(header, f"The header of {file}", unique_keys=True)


def safetensors_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory without an index."""
    single = directory / "model.safetensors"
    if single.exists():
        return [single]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{directory} holds no safetensors file{_pickles(directory)}",
            "model.safetensors, shards with an index, or a single .gguf file",
            "Give the directory that holds the model's weights",
        )
    shards = [match for file in files if (match := _SHARD.match(file.name))]
    if not shards:
        return files
    stem, total = shards[0]["stem"], shards[0]["total"]
    names = [f"{stem}-{number:0{len(total)}d}-of-{total}.safetensors" for number in range(1, len(files) + 2)]
    if int(total) == 0:
        raise InputError(f"{files[0]} is numbered as one of no files", "shards numbered from 1", "Rename the file")
    return [directory / name for name in names[: int(total)]]  # one more than there are is enough to miss one


def _pickles(directory: Path) -> str:
    pickled = next((file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern)), None)
    return f"; {pickled} is a pickle, which is not opened because it can run code" if pickled else ""
