from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from interp.errors import InputError
from interp.formats.gguf_header import read_header

F32, Q8_0 = int(GGMLQuantizationType.F32), int(GGMLQuantizationType.Q8_0)
UINT8, UINT32, STRING, ARRAY = (
    int(kind) for kind in (GGUFValueType.UINT8, GGUFValueType.UINT32, GGUFValueType.STRING, GGUFValueType.ARRAY)
)
Q = struct.Struct("<Q").pack
I = struct.Struct("<I").pack  # noqa: E741 — struct's own letter


def text(value: bytes, length: int | None = None) -> bytes:
    return Q(len(value) if length is None else length) + value


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + I(kind) + value


def array(kind: int, length: int, values: bytes) -> bytes:
    return I(kind) + Q(length) + values


def tensor(name: bytes, shape: Sequence[int], offset: int, kind: int = F32, n_dimensions: int | None = None) -> bytes:
    n_dimensions = len(shape) if n_dimensions is None else n_dimensions
    return text(name) + I(n_dimensions) + b"".join(map(Q, shape)) + I(kind) + Q(offset)


FIELDS = (
    field(b"a", UINT32, I(7)),
    field(b"b", STRING, text(b"\xff text that need not be UTF-8")),
    field(b"c", ARRAY, array(STRING, 2, text(b"x") + text(b"yz"))),
    field(b"d", ARRAY, array(UINT32, 3, I(1) * 3)),
    field(b"e", int(GGUFValueType.BOOL), b"\1"),
    field(b"f", int(GGUFValueType.FLOAT64), struct.pack("<d", 0.5)),
)
TENSORS = (tensor(b"first", (32, 2), 0), tensor(b"second", (64,), 256, Q8_0), tensor(b"third", (3,), 352))
"""Of 256, 68 and 12 bytes; 68 is padded to 96."""


def write(
    path: Path,
    fields: Sequence[bytes] = FIELDS,
    tensors: Sequence[bytes] = TENSORS,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    n_data: int = 364,
) -> Path:
    """A file of these pieces, whatever they say."""
    n_tensors, n_fields = counts or (len(tensors), len(fields))
    header = b"GGUF" + I(version) + Q(n_tensors) + Q(n_fields) + b"".join((*fields, *tensors))
    path.write_bytes(header + b"\0" * (-len(header) % 32) + b"\0" * n_data)
    return path


def test_whole_files_pass_and_are_what_the_gguf_package_reads(tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf")
    read_header(file)
    read = gguf.GGUFReader(file)
    assert [(t.name, t.n_bytes) for t in read.tensors] == [("first", 256), ("second", 68), ("third", 12)]
    aligned = field(b"general.alignment", UINT32, I(8))
    read_header(write(tmp_path / "y.gguf", (aligned,), (tensor(b"a", (3,), 0), tensor(b"b", (3,), 16)), n_data=28))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"counts": (2**62, len(FIELDS))}, "tensors do not fit"),
        ({"counts": (len(TENSORS), 2**64 - 1)}, "fields do not fit"),
        ({"counts": (len(TENSORS) + 1, len(FIELDS))}, "has 0 dimensions"),
        ({"version": 1}, "its version is 1"),
        ({"version": 3 << 24}, "its version is 50331648; other byte orders"),
        ({"n_data": 363}, "'third' ends beyond the file"),
        ({"fields": (field(b"a", STRING, text(b"x", 2**63)),)}, "bytes of 'a text' do not fit"),
        ({"fields": (text(b"key", 2**40) + I(UINT8) + b"x",)}, "a name has 1,099,511,627,776 bytes"),
        ({"fields": (field(b"\xff", UINT8, b"x"),)}, "a name is not UTF-8"),
        ({"fields": (field(b"a", 99, b"x"),)}, "'a' has the unknown type 99"),
        ({"fields": (FIELDS[0], FIELDS[0])}, "the field 'a' is there twice"),
        ({"fields": (field(b"a", ARRAY, array(UINT8, 2**60, b"x")),)}, "elements"),
        ({"fields": (field(b"a", ARRAY, array(STRING, 10**6, text(b"x"))),)}, "texts in 'a' do not fit"),
        ({"fields": (field(b"a", ARRAY, array(ARRAY, 1, array(UINT8, 1, b"x"))),)}, "'a' is an array of arrays"),
        ({"fields": (field(b"a", ARRAY, array(UINT8, 2**21 + 1, b"x" * (2**21 + 1))),)}, "2,097,153 elements"),
        ({"fields": (field(b"a", ARRAY, array(99, 1, b"x")),)}, "'a' has the unknown type 99"),
        ({"fields": (field(b"general.alignment", UINT32, I(0)),)}, "no power of two"),
        ({"fields": (field(b"general.alignment", UINT32, I(24)),)}, "no power of two"),
        ({"fields": (field(b"general.alignment", UINT8, b"\1"),)}, "no power of two"),
        ({"tensors": (tensor(b"a", (), 0),)}, "'a' has 0 dimensions"),
        ({"tensors": (tensor(b"a", (1,), 0, n_dimensions=2**31),)}, "'a' has 2147483648 dimensions"),
        ({"tensors": (tensor(b"a", (1,) * 5, 0),)}, "'a' has 5 dimensions"),
        ({"tensors": (tensor(b"a", (0, 3), 0),)}, r"'a' has the dimensions \[0, 3\]"),
        ({"tensors": (tensor(b"a", (33,), 0, Q8_0),)}, r"'a' has the dimensions \[33\] in blocks of 32"),
        ({"tensors": (tensor(b"a", (2**32, 2**32), 0),)}, "'a' ends beyond the file"),
        ({"tensors": (tensor(b"a", (3,), 0, 999),)}, "'a' has the unknown type 999"),
        ({"tensors": (tensor(b"a", (3,), 0), tensor(b"b", (3,), 0))}, "'b' begins at 0 where 32 comes next"),
        ({"tensors": (tensor(b"a", (32,), 0), tensor(b"b", (3,), 64))}, "'b' begins at 64 where 128 comes next"),
        ({"tensors": (tensor(b"a", (3,), 0), tensor(b"b", (3,), 64))}, "'b' begins at 64 where 32 comes next"),
        ({"tensors": (tensor(b"a", (3,), 2**63),)}, "'a' begins at 9223372036854775808"),
        ({"tensors": (tensor(b"a", (3,), 0), tensor(b"a", (3,), 32))}, "the tensor 'a' is there twice"),
    ],
)
def test_headers_that_cannot_be_are_refused_at_once(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf", **changed)
    start = time.process_time()
    with pytest.raises(InputError, match=rf"x\.gguf is truncated or is not a GGUF file \(.*{message}"):
        read_header(file)
    assert time.process_time() - start < 2


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    content = write(tmp_path / "x.gguf").read_bytes()
    for keep in range(0, len(content), 3):
        (tmp_path / "x.gguf").write_bytes(content[:keep])
        with pytest.raises(InputError, match="truncated or is not a GGUF"):
            read_header(tmp_path / "x.gguf")


def equals_the_gguf_package(file: Path) -> None:
    """Every field and every tensor as the package's own reader has them."""
    theirs, ours = gguf.GGUFReader(file), read_header(file)
    counts = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    assert {*theirs.fields} - counts == {*ours.fields}
    for key, field in ours.fields.items():
        expected = theirs.fields[key].contents()
        assert field.contents() == expected, key
        assert type(field.contents()) is type(expected), key
    for tensor in theirs.tensors:
        shape = tuple(int(length) for length in reversed(tensor.shape))
        expected = (tensor.name, tensor.tensor_type, shape, tensor.data_offset, tensor.n_bytes)
        assert expected == tuple(vars(ours.tensors[tensor.name]).values())


def packaged(path: Path, add: Any = lambda writer: None) -> Path:
    """A file written by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_pre("x")
    writer.add_token_list(["a", "b", "ü", "", " ", "日本"])
    writer.add_token_scores([0.5, 0.25, 0.1])
    writer.add_token_types([1, 3, 4])
    writer.add_array("flags", [True, False])
    for kind, value in (("uint8", 255), ("int8", -128), ("uint16", 65535), ("int16", -32768), ("uint32", 2**32 - 1)):
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    for kind, value in (("int32", -(2**31)), ("uint64", 2**64 - 1), ("int64", -(2**63)), ("float32", 0.1)):
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    add(writer)
    for name, shape in (("a", (5, 7)), ("b", (3,)), ("c", (1, 2, 3))):
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.add_tensor("d", np.ones((4, 34), np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_files_that_the_gguf_package_writes(tmp_path: Path) -> None:
    equals_the_gguf_package(packaged(tmp_path / "x.gguf"))
    equals_the_gguf_package(packaged(tmp_path / "y.gguf", lambda writer: writer.add_custom_alignment(64)))
    tokens = [f"token {index}" for index in range(70_000)]
    equals_the_gguf_package(packaged(tmp_path / "z.gguf", lambda writer: writer.add_array("tokens", tokens)))


def test_a_text_that_is_not_utf_8_is_told_when_it_is_read(tmp_path: Path) -> None:
    fields = read_header(write(tmp_path / "x.gguf")).fields
    assert fields["a"].contents() == 7
    assert fields["c"].contents() == ["x", "yz"]
    with pytest.raises(UnicodeDecodeError):
        fields["b"].contents()


def test_a_header_is_read_again_only_where_the_file_changed(tmp_path: Path) -> None:
    file = packaged(tmp_path / "x.gguf")
    first = read_header(file)
    assert read_header(file) is first
    packaged(file, lambda writer: writer.add_uint32("new", 1))
    assert read_header(file).fields["new"].contents() == 1


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda _: None, lambda path: Path(path).touch()])
def test_what_is_no_file(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "x.gguf")
    with pytest.raises(InputError, match=r"x\.gguf (is a directory|is a pipe|cannot be read|is truncated)"):
        read_header(tmp_path / "x.gguf")
