"""The tensors of one or several safetensors files, read one at a time."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.documents import checked, parse_json, read_json, require_file
from interp.errors import InputError

INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]+)-of-(?P<total>[0-9]+)\.safetensors$")
LONGEST_NAME = 200
"""Characters of a file's name; file systems hold 255 bytes."""
HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header, as the library itself bounds it."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@dataclass(frozen=True)
class Header:
    """What a safetensors header says of one tensor."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the stored data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Shards:
    """Every tensor of a directory's safetensors files by name; headers are read at once, data when asked for.

    Raises:
        InputError: no safetensors file, a damaged one, a shard or tensor that the index promises and that is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._resources = ExitStack()
        self._open: dict[Path, Any] = {}
        self.headers: dict[str, Header] = {}
        index = directory / INDEX
        promised = _read_index(index) if index.exists() else {}
        self.files = sorted({directory / file for file in promised.values()}) if promised else _files(directory)
        for file in self.files:
            self._add(file)
        for name, file_name in promised.items():
            if name not in self.headers or self.headers[name].file.name != file_name:
                raise InputError(
                    f"The tensor {name!r} is missing from {directory / file_name}, where {INDEX} says it is",
                    "every tensor that the index names",
                    "Download the checkpoint again",
                )

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def read(self, name: str) -> Tensor:
        """One tensor as stored."""
        header = self.headers[name]
        try:
            return self._open[header.file].get_tensor(name)
        except SafetensorError as error:
            raise InputError(f"The tensor {name!r} of {header.file} cannot be read: {error}") from error

    def _add(self, file: Path) -> None:
        if not file.exists():
            raise InputError(
                f"The shard {file} is missing",
                "every file that the index or the shard numbering names",
                "Download the checkpoint again",
            )
        require_file(file, "a safetensors file")
        try:
            handle = self._resources.enter_context(safe_open(file, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{file} is damaged or is not a safetensors file ({error})",
                "a complete safetensors file",
                "Download or copy it again",
            ) from error
        _refuse_repeated_names(file)
        self._open[file] = handle
        for name in handle.keys():  # noqa: SIM118 — a safetensors handle is not iterable
            if name in self.headers:
                raise InputError(
                    f"The tensor {name!r} is in both {self.headers[name].file} and {file.name}",
                    "each tensor once",
                    f"Remove the file that does not belong to the checkpoint, or add {INDEX}",
                )
            piece = handle.get_slice(name)
            dtype = _DTYPES.get(piece.get_dtype())
            if dtype is None:
                raise InputError(
                    f"The tensor {name!r} of {file} has the type {piece.get_dtype()}",
                    f"one of {', '.join(_DTYPES)}",
                    "Give a checkpoint in one of the formats that are supported",
                )
            self.headers[name] = Header(file, dtype, tuple(piece.get_shape()))


class _Index(BaseModel, extra="allow", strict=True):
    weight_map: dict[str, str]


def _read_index(index: Path) -> dict[str, str]:
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


def _refuse_repeated_names(file: Path) -> None:
    """Of a name that a header holds twice, the library keeps one tensor."""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        header = stored.read(min(length, HEADER_LIMIT))
    parse_json(header, f"The header of {file}", unique_keys=True)


def _files(directory: Path) -> list[Path]:
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
