"""The one reader of text, JSON, JSON lines and TOML: whatever it is given ends in a value or in an InputError."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from interp import documents
from interp.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_is_read_as_it_was(value: object) -> None:
    assert documents.parse_json(json.dumps(value), "x") == value


@given(st.text() | st.binary())
def test_any_text_is_a_value_or_an_input_error(text: str | bytes) -> None:
    for parse in (documents.parse_json, documents.parse_toml):
        if parse is documents.parse_toml and isinstance(text, bytes):
            continue
        said = "x"
        try:
            parse(text, "x")
        except InputError as error:
            said = str(error)
        assert "x" in said


@pytest.mark.parametrize("depth", [documents.MAX_NESTING + 1, 500, 100_000])
@pytest.mark.parametrize("pair", ["[]", ('{"a":', "}")])
def test_deep_json_is_refused(depth: int, pair: str | tuple[str, str]) -> None:
    text = pair[0] * depth + ("" if isinstance(pair, str) else "1") + pair[1] * depth
    with pytest.raises(InputError, match="nested"):
        documents.parse_json(text, "x")


def test_nesting_up_to_the_bound_is_read() -> None:
    depth = documents.MAX_NESTING
    assert documents.parse_json("[" * depth + "]" * depth, "x")
    assert documents.parse_json("[" + ",".join(["[[]]"] * 1000) + "]", "x")


def test_deep_toml_is_refused() -> None:
    for depth in (documents.MAX_NESTING + 1, 100_000):
        with pytest.raises(InputError, match="nested"):
            documents.parse_toml("a = " + "[" * depth + "]" * depth, "x")


@pytest.mark.parametrize("digits", ["9" * 21, "9" * 5000, "1" + "0" * 1_000_000, str(2**64)])
def test_huge_integers_are_refused(digits: str) -> None:
    with pytest.raises(InputError, match=r"digits|bits"):
        documents.parse_json(f'{{"bits": {digits}}}', "x")
    with pytest.raises(InputError):
        documents.parse_toml(f"bits = {digits}", "x")


def test_the_mark_of_no_limit_of_tokenizers_is_let_through() -> None:
    assert documents.parse_json("[1000000000000000019884624838656]", "a") == [int(1e30)]


def test_lines_end_at_line_feeds_only() -> None:
    text = '{"a": "one\u2028line\x85x"}\r\n\n[1]\n'
    assert [document for _, document in documents.json_lines(text, "f")] == [{"a": "one\u2028line\x85x"}, [1]]
    with pytest.raises(InputError, match="f, line 2"):
        list(documents.json_lines("1\n{", "f"))


def test_a_pipe_is_refused_unread(tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    done = threading.Event()

    def read() -> None:
        with pytest.raises(InputError, match="pipe"):
            documents.read_json(pipe)
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(60), "reading a pipe must not wait for a writer"


def test_devices_directories_and_missing_files_are_refused(tmp_path: Path) -> None:
    for path, said in ((Path("/dev/zero"), "device"), (tmp_path, "directory"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(InputError, match=said):
            documents.read_text(path)
    with pytest.raises(InputError, match="cannot be read"):
        documents.read_text("a\0b")


def test_size_and_encoding_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes("\ufeff[1]".encode())
    assert documents.read_json(file) == [1]
    with pytest.raises(InputError, match="6 bytes"):
        documents.read_text(file, max_bytes=5)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        documents.read_text(file)
    file.write_text("[1]")
    with pytest.raises(InputError, match="JSON list"):
        documents.read_json_object(file)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    bits: int = Field(ge=2, le=8)


@pytest.mark.parametrize("bits", ["4", 4.0, True, None, 1, 9, [4], float("nan"), {"a": "b" * 200}])
def test_a_key_of_another_type_is_named(bits: object) -> None:
    with pytest.raises(InputError, match=r"config\.json: bits is"):
        documents.checked(_Settings, {"bits": bits}, "config.json")


def test_a_schema_keeps_other_keys() -> None:
    assert documents.checked(_Settings, {"bits": 4, "other": 1}, "x").model_extra == {"other": 1}
    with pytest.raises(InputError, match="bits"):
        documents.checked(_Settings, {}, "x")


def test_half_of_a_surrogate_pair_is_refused_and_a_whole_one_is_a_character() -> None:
    assert documents.parse_json('["\\ud83d\\ude00"]', "x") == ["😀"]
    for text in ('["\\ud83d"]', '{"\\udc00": 1}', '[{"a": ["b\\uD800c"]}]'):
        with pytest.raises(InputError, match="half of a surrogate pair"):
            documents.parse_json(text, "x")
    assert documents.parse_json('["\\\\ud83d"]', "x") == ["\\ud83d"]  # a backslash and a word


def test_lines_keep_what_is_no_line_feed() -> None:
    found = list(documents.text_lines(" a\u2028b\r\n\n\x0bc\x85\rd\n", "f"))
    assert found == [("f, line 1,", " a\u2028b"), ("f, line 3,", "\x0bc\x85\rd")]


def test_messages_can_be_printed_and_read() -> None:
    error = InputError("\x1b[31m\ud800\u202e\0" + "x" * 100_000)
    assert str(error).startswith("\\x1b[31m\\ud800\\u202e\\x00x")
    assert len(str(error)) < 3000
    str(error).encode()
