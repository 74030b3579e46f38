"""The header of a GGUF file, held against the file's size before the `gguf` package reads it.

That package makes one array for every element and believes every count, so a count of 2^60 in a file of a kilobyte ends
in no error for a long time. The rules are those of llama.cpp's own reader (ggml/src/gguf.cpp): each tensor begins where
the one before it ends, no arrays inside arrays, no name twice.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGUFValueType

from interp.documents import require_file
from interp.errors import InputError

VERSIONS = (2, 3)
MAX_ELEMENTS = 2**21
"""Of all arrays together: seven times the tokens of the largest vocabulary, as tokens, scores, types and merges are
arrays. The `gguf` package takes a quarter of a kilobyte and some microseconds for each."""
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
_VALUE_KINDS = {int(kind): kind for kind in GGUFValueType}
_BLOCKS = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
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
class _Tensor:
    """What the header says of one tensor: bytes from the beginning of the data, and how many they are."""

    name: str
    offset: int
    n_bytes: int


def check_header(file: Path) -> None:
    """Raise unless every count, size and offset in the header of a GGUF file can be.

    Raises:
        InputError: not a regular file, not a GGUF file, truncated, or impossible.
    """
    if require_file(file, "a .gguf file").stat().st_size == 0:
        raise _not_gguf(file, "it is empty")
    with file.open("rb") as stored, mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Header(file, content).check()


class _Header:
    """A cursor over the header."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self.file = file
        self.content = content
        self.place = 0
        self.elements = 0

    def check(self) -> None:
        if bytes(self.content[:4]) != b"GGUF":
            raise _not_gguf(self.file, "it does not begin with 'GGUF'")
        self.place = 4
        version = self.number("<I")
        if version not in VERSIONS:
            raise _not_gguf(self.file, f"its version is {version}; other byte orders are not read either")
        n_tensors, n_fields = self.number("<Q"), self.number("<Q")
        self.at_most(n_tensors, 24, "tensors")
        self.at_most(n_fields, 13, "fields")
        alignment = self.fields(n_fields)
        tensors = [self.tensor() for _ in range(n_tensors)]
        self.check_tensors(tensors, alignment)

    def check_tensors(self, tensors: list[_Tensor], alignment: int) -> None:
        """Each begins where the one before it ends, up to the alignment, and the last ends within the file."""
        names: set[str] = set()
        expected = 0
        for tensor in tensors:
            if tensor.name in names:
                raise _not_gguf(self.file, f"the tensor {tensor.name!r} is there twice")
            names.add(tensor.name)
            if tensor.offset != expected:
                raise _not_gguf(
                    self.file, f"the tensor {tensor.name!r} begins at {tensor.offset} where {expected} comes next"
                )
            expected += _padded(tensor.n_bytes, alignment)
            if _padded(self.place, alignment) + tensor.offset + tensor.n_bytes > len(self.content):
                raise _not_gguf(self.file, f"the tensor {tensor.name!r} ends beyond the file")

    def fields(self, count: int) -> int:
        """Pass over the metadata; returns the alignment of the data."""
        alignment = DEFAULT_ALIGNMENT
        keys = set()
        for _ in range(count):
            key = self.text()
            if key in keys:
                raise _not_gguf(self.file, f"the field {key!r} is there twice")
            keys.add(key)
            kind = self.kind(key)
            if key == "general.alignment":
                alignment = self.number("<I") if kind == GGUFValueType.UINT32 else 0
                if alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
                    raise _not_gguf(self.file, "general.alignment is no power of two")
            else:
                self.value(key, kind)
        return alignment

    def value(self, key: str, kind: GGUFValueType) -> None:
        """Pass over one value."""
        if kind == GGUFValueType.STRING:
            self.skip_text()
        elif kind in _SCALARS:
            self.skip(struct.calcsize(_SCALARS[kind]), 1, key)
        else:
            kind, count = self.kind(key), self.number("<Q")
            self.elements += count
            if self.elements > MAX_ELEMENTS:
                raise _not_gguf(self.file, f"with {key!r} its arrays have {self.elements:,} elements")
            if kind == GGUFValueType.STRING:
                self.at_most(count, 8, f"texts in {key!r}")
                for _ in range(count):
                    self.skip_text()
            elif kind in _SCALARS:
                self.skip(struct.calcsize(_SCALARS[kind]), count, key)
            else:
                raise _not_gguf(self.file, f"{key!r} is an array of arrays")

    def tensor(self) -> _Tensor:
        name = self.text()
        n_dimensions = self.number("<I")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise _not_gguf(self.file, f"the tensor {name!r} has {n_dimensions} dimensions")
        shape = [self.number("<Q") for _ in range(n_dimensions)]
        kind = self.number("<I")
        if kind not in _BLOCKS:
            raise _not_gguf(self.file, f"the tensor {name!r} has the unknown type {kind}")
        block, size = _BLOCKS[kind]
        elements = 1
        for length in shape:  # Python's integers: no product overflows
            elements *= length
        if not elements or shape[0] % block:
            raise _not_gguf(self.file, f"the tensor {name!r} has the dimensions {shape} in blocks of {block}")
        return _Tensor(name, self.number("<Q"), elements // block * size)

    def kind(self, key: str) -> GGUFValueType:
        kind = self.number("<I")
        if kind not in _VALUE_KINDS:
            raise _not_gguf(self.file, f"{key!r} has the unknown type {kind}")
        return _VALUE_KINDS[kind]

    def text(self) -> str:
        """A name: short, and UTF-8."""
        length = self.number("<Q")
        if length > 2**16:
            raise _not_gguf(self.file, f"a name has {length:,} bytes")
        self.at_most(length, 1, "bytes of a name")
        try:
            name = bytes(self.content[self.place : self.place + length]).decode()
        except UnicodeDecodeError as error:
            raise _not_gguf(self.file, "a name is not UTF-8") from error
        self.place += length
        return name

    def skip_text(self) -> None:
        self.skip(1, self.number("<Q"), "a text")

    def skip(self, size: int, count: int, what: str) -> None:
        self.at_most(count, size, f"bytes of {what!r}")
        self.place += size * count

    def number(self, layout: str) -> int:
        if self.place + struct.calcsize(layout) > len(self.content):
            raise _not_gguf(self.file, "it ends within its header")
        (number,) = struct.unpack_from(layout, self.content, self.place)
        self.place += struct.calcsize(layout)
        return int(number)

    def at_most(self, count: int, size: int, what: str) -> None:
        """Raise unless so many things of at least this size fit into the rest of the file."""
        if count * size > len(self.content) - self.place:
            raise _not_gguf(self.file, f"{count:,} {what} do not fit into its {len(self.content):,} bytes")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _not_gguf(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is truncated or is not a GGUF file ({reason})",
        "a complete .gguf file",
        "Download or write it again",
    )
