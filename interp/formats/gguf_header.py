"""The header of a GGUF file: read once per file and process, and held against the file's size before it is believed.

The `gguf` package's own reader makes an array for every element (seconds for a vocabulary of 49,152 tokens) and
believes every count, so a count of 2^60 in a file of a kilobyte ends in no error for a long time. The rules are those
of llama.cpp's own reader (ggml/src/gguf.cpp): each tensor begins where the one before it ends, no arrays inside arrays,
no name twice.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from interp.documents import require_file
from interp.errors import InputError

VERSIONS = (2, 3)
MAX_ELEMENTS = 2**21
"""Of all arrays together: seven times the tokens of the largest vocabulary, as tokens, scores, types and merges are
arrays. A text takes half a microsecond and some sixty bytes."""
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
FILES_REMEMBERED = 8
_VALUE_KINDS = {int(kind): kind for kind in GGUFValueType}
_BLOCK_KINDS = {int(kind): kind for kind in GGML_QUANT_SIZES}
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}


@dataclass(frozen=True)
class StoredTensor:
    """What the header says of one tensor.

    Attributes:
        name: llama.cpp's.
        kind: the type of its blocks.
        shape: as torch sees it; GGUF lists dimensions in reverse.
        offset: bytes from the beginning of the file.
        n_bytes: how many bytes it takes.
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Field:
    """One entry of the metadata, as it lies in the file.

    Attributes:
        kind: the type of the value.
        raw: a number, the bytes of a text, or of an array the texts' bytes or the numbers.
    """

    kind: GGUFValueType
    raw: Any

    def contents(self) -> Any:
        """A number, a text, or a list of either.

        Raises:
            UnicodeDecodeError: a text that is not UTF-8.
        """
        if isinstance(self.raw, bytes):
            return self.raw.decode()
        if isinstance(self.raw, list):
            return [text.decode() for text in self.raw]
        return self.raw.tolist() if isinstance(self.raw, np.ndarray) else self.raw


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        fields: the metadata.
        tensors: by name, in the file's order.
    """

    fields: Mapping[str, Field]
    tensors: Mapping[str, StoredTensor]


def read_header(file: Path) -> Header:
    """The header of a GGUF file, every count, size and offset of which can be; read again only where the file changed.

    Raises:
        InputError: not a regular file, not a GGUF file, truncated, or impossible.
    """
    stat = require_file(file, "a .gguf file").stat()
    if stat.st_size == 0:
        raise _not_gguf(file, "it is empty")
    return _read(file, file.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=FILES_REMEMBERED)
def _read(file: Path, place: Path, size: int, changed: int) -> Header:
    """The header of a file of this size and time of change; the arguments are the key under which it is remembered."""
    with file.open("rb") as stored, mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Cursor(file, content).header()


class _Cursor:
    """A place in the header."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self.file = file
        self.content = content
        self.size = len(content)
        self.place = 0
        self.elements = 0

    def header(self) -> Header:
        """All of it, from the beginning."""
        if bytes(self.content[:4]) != b"GGUF":
            raise _not_gguf(self.file, "it does not begin with 'GGUF'")
        self.place = 4
        version = self.number("<I")
        if version not in VERSIONS:
            raise _not_gguf(self.file, f"its version is {version}; other byte orders are not read either")
        n_tensors, n_fields = self.number("<Q"), self.number("<Q")
        self.at_most(n_tensors, 24, "tensors")
        self.at_most(n_fields, 13, "fields")
        fields = self.fields(n_fields)
        described = [self.tensor() for _ in range(n_tensors)]
        return Header(fields, self.placed(described, self.alignment(fields)))

    def placed(self, described: list[StoredTensor], alignment: int) -> dict[str, StoredTensor]:
        """The tensors where they lie in the file: each begins where the one before it ends, up to the alignment."""
        tensors: dict[str, StoredTensor] = {}
        beginning, expected = _padded(self.place, alignment), 0
        for tensor in described:
            if tensor.name in tensors:
                raise _not_gguf(self.file, f"the tensor {tensor.name!r} is there twice")
            if tensor.offset != expected:
                raise _not_gguf(
                    self.file, f"the tensor {tensor.name!r} begins at {tensor.offset} where {expected} comes next"
                )
            expected += _padded(tensor.n_bytes, alignment)
            if beginning + tensor.offset + tensor.n_bytes > self.size:
                raise _not_gguf(self.file, f"the tensor {tensor.name!r} ends beyond the file")
            tensors[tensor.name] = replace(tensor, offset=beginning + tensor.offset)
        return tensors

    def alignment(self, fields: Mapping[str, Field]) -> int:
        """Where data may begin: at multiples of how many bytes."""
        field = fields.get("general.alignment", Field(GGUFValueType.UINT32, DEFAULT_ALIGNMENT))
        alignment = field.raw if field.kind == GGUFValueType.UINT32 else 0
        if alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
            raise _not_gguf(self.file, "general.alignment is no power of two")
        return int(alignment)

    def fields(self, count: int) -> dict[str, Field]:
        """The metadata."""
        fields: dict[str, Field] = {}
        for _ in range(count):
            key = self.name()
            if key in fields:
                raise _not_gguf(self.file, f"the field {key!r} is there twice")
            kind = self.kind(key)
            fields[key] = Field(kind, self.value(key, kind))
        return fields

    def value(self, key: str, kind: GGUFValueType) -> Any:
        """One value, see `Field.raw`."""
        if kind == GGUFValueType.STRING:
            return self.texts(1)[0]
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        kind, count = self.kind(key), self.number("<Q")
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise _not_gguf(self.file, f"with {key!r} its arrays have {self.elements:,} elements")
        if kind == GGUFValueType.STRING:
            self.at_most(count, 8, f"texts in {key!r}")
            return self.texts(count)
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], count, key)
        raise _not_gguf(self.file, f"{key!r} is an array of arrays")

    def tensor(self) -> StoredTensor:
        """The next tensor; its offset still counts from the beginning of the data."""
        name = self.name()
        n_dimensions = self.number("<I")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise _not_gguf(self.file, f"the tensor {name!r} has {n_dimensions} dimensions")
        lengths = [self.number("<Q") for _ in range(n_dimensions)]
        kind = _BLOCK_KINDS.get(number := self.number("<I"))
        if kind is None:
            raise _not_gguf(self.file, f"the tensor {name!r} has the unknown type {number}")
        block, size = GGML_QUANT_SIZES[kind]
        elements = math.prod(lengths)  # Python's integers: no product overflows
        if not elements or lengths[0] % block:
            raise _not_gguf(self.file, f"the tensor {name!r} has the dimensions {lengths} in blocks of {block}")
        return StoredTensor(name, kind, tuple(reversed(lengths)), self.number("<Q"), elements // block * size)

    def kind(self, key: str) -> GGUFValueType:
        """The type of the next value."""
        kind = self.number("<I")
        if kind not in _VALUE_KINDS:
            raise _not_gguf(self.file, f"{key!r} has the unknown type {kind}")
        return _VALUE_KINDS[kind]

    def name(self) -> str:
        """A name: short, and UTF-8."""
        length = self.number("<Q")
        if length > 2**16:
            raise _not_gguf(self.file, f"a name has {length:,} bytes")
        self.at_most(length, 1, "bytes of a name")
        self.place += length
        try:
            return self.content[self.place - length : self.place].decode()
        except UnicodeDecodeError as error:
            raise _not_gguf(self.file, "a name is not UTF-8") from error

    def texts(self, count: int) -> Any:
        """The bytes of texts, each behind its length; a vocabulary is 300,000 of them."""
        content, place, size = self.content, self.place, self.size
        length_at = struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            start = place + 8
            if start > size:
                raise _not_gguf(self.file, "it ends within its header")
            place = start + length_at(content, place)[0]
            if place > size:
                raise _not_gguf(self.file, f"{place - start:,} bytes of 'a text' do not fit into its {size:,} bytes")
            texts.append(content[start:place])
        self.place = place
        return texts

    def numbers(self, layout: str, count: int, key: str) -> NDArray[Any]:
        """An array of numbers, copied out of the file."""
        size = struct.calcsize(layout)
        self.at_most(count, size, f"bytes of {key!r}")
        self.place += count * size
        return np.frombuffer(self.content[self.place - count * size : self.place], np.dtype(layout))

    def number(self, layout: str) -> Any:
        """The next number."""
        if self.place + struct.calcsize(layout) > self.size:
            raise _not_gguf(self.file, "it ends within its header")
        (number,) = struct.unpack_from(layout, self.content, self.place)
        self.place += struct.calcsize(layout)
        return number

    def at_most(self, count: int, size: int, what: str) -> None:
        """Raise unless so many things of at least this size fit into the rest of the file."""
        if count * size > self.size - self.place:
            raise _not_gguf(self.file, f"{count:,} {what} do not fit into its {self.size:,} bytes")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _not_gguf(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is truncated or is not a GGUF file ({reason})",
        "a complete .gguf file",
        "Download or write it again",
    )
