"""The tensors of one or several safetensors files, read one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.documents import require_file
from interp.errors import InputError
from interp.formats.mapped import Mapped
from interp.formats.placing import placed
from interp.formats.safetensors_header import INDEX, read_index, refuse_repeated_names, safetensors_files

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U32": torch.uint32,
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
        self._open: Mapped[Any] = Mapped(lambda file: safe_open(file, framework="pt"))
        self.headers: dict[str, Header] = {}
        index = directory / INDEX
        promised = read_index(index) if index.exists() else {}
        self.files = (
            sorted({directory / file for file in promised.values()}) if promised else safetensors_files(directory)
        )
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
            return placed(self._open.reading(header.file, header.n_bytes).get_tensor(name))
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
            handle = self._open.reading(file, 0)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{file} is damaged or is not a safetensors file ({error})",
                "a complete safetensors file",
                "Download or copy it again",
            ) from error
        refuse_repeated_names(file)
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
