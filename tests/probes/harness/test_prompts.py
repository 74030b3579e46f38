"""Prompt sets: what the built-in ones promise, and every way a user's file can be wrong."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InputError
from probes.harness.prompts import PromptSet, builtin, read_prompts

REQUESTS = ["Bake bread.", "Sing a song, please.", 'Say "hello".']


@pytest.mark.parametrize("name", ["harmful", "harmless"])
def test_builtin_is_balanced_and_unique(name: str) -> None:
    prompts = builtin(name)
    assert len(prompts) == 128
    assert len({request.lower() for request in prompts.instructions}) == 128
    assert set(Counter(prompts.categories).values()) == {16}
    assert set(Counter(prompts.take(40).categories).values()) == {5}


def test_builtin_sets_are_matched_in_form() -> None:
    harmful, harmless = builtin("harmful").instructions, builtin("harmless").instructions
    assert not set(harmful) & set(harmless)
    assert [request.split()[0] for request in harmful] == [request.split()[0] for request in harmless]
    lengths = [[len(request.split()) for request in side] for side in (harmful, harmless)]
    assert abs(sum(lengths[0]) - sum(lengths[1])) < 128  # less than a word in the mean
    assert max(abs(a - b) for a, b in zip(*lengths, strict=True)) <= 4


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_builtin_is_not_copied_from_public_sets(shared: Path) -> None:
    public = [
        _words(record["instruction"])
        for file in sorted((shared / "data" / "prompts").glob("*.json"))
        for record in json.loads(file.read_text())
    ]
    assert len(public) > 1000
    matcher = SequenceMatcher(autojunk=False)
    for request in (*builtin("harmful").instructions, *builtin("harmless").instructions):
        matcher.set_seq2(_words(request))
        for other in public:
            matcher.set_seq1(other)
            if matcher.real_quick_ratio() > 0.75 and matcher.quick_ratio() > 0.75:
                assert matcher.ratio() <= 0.75, (request, other)


def _write(path: Path, requests: list[str], field: str = "instruction") -> Path:
    records = [{field: request, "category": "x"} for request in requests]
    if path.suffix == ".txt":
        path.write_text("\n".join(requests), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field, "category"])
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl", ".csv", ".CSV"])
@pytest.mark.parametrize("field", ["instruction", "prompt", "goal"])
def test_every_kind_of_file_gives_the_same_requests(tmp_path: Path, suffix: str, field: str) -> None:
    prompts = read_prompts(_write(tmp_path / f"set{suffix}", REQUESTS, field))
    assert prompts.instructions == tuple(REQUESTS)
    assert prompts.categories == (() if suffix == ".txt" else ("x",) * 3)
    assert prompts.name == f"set{suffix}"


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=1))
def test_jsonl_and_csv_keep_any_text(tmp_path_factory: pytest.TempPathFactory, requests: list[str]) -> None:
    expected = tuple(dict.fromkeys(request.strip() for request in requests if request.strip()))
    directory = tmp_path_factory.mktemp("sets")
    for suffix in (".jsonl", ".json", ".csv"):
        path = _write(directory / f"set{suffix}", requests)
        if expected:
            assert read_prompts(path).instructions == expected
        else:
            with pytest.raises(InputError, match="no prompts"):
                read_prompts(path)


def test_blank_and_repeated_requests_are_dropped_in_order(tmp_path: Path) -> None:
    path = tmp_path / "set.txt"
    path.write_text("\ufeffb\n\n  a \nb\n \nc\na\r\n", encoding="utf-8")
    assert read_prompts(path).instructions == ("b", "a", "c")
    assert read_prompts(path, limit=2).instructions == ("b", "a")
    assert read_prompts(path, limit=9).instructions == ("b", "a", "c")


def test_json_may_list_plain_texts(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(REQUESTS))
    assert read_prompts(path).instructions == tuple(REQUESTS)


def test_hash_depends_on_content_and_order_only() -> None:
    one = PromptSet("one", ("a", "b"))
    assert one.sha256 == PromptSet("two", ("a", "b")).sha256
    others = [PromptSet("one", ("b", "a")), PromptSet("one", ("a",)), PromptSet("one", ("a", "b"), ("x", "y"))]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.txt", b"", r"set\.txt holds no prompts"),
        ("set.txt", b" \n\n", r"holds no prompts"),
        ("set.json", b"", r"holds no prompts"),
        ("set.csv", b"instruction\n", r"holds no prompts"),
        ("set.txt", b"caf\xe9", r"set\.txt is not UTF-8 text \(byte 3"),
        ("set.pdf", b"x", r"\.txt, \.jsonl, \.json, \.csv"),
        ("set.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', r"set\.jsonl, line 3, is not valid JSON"),
        ("set.json", b'[\n{"prompt": "a"},\n}]', r"set\.json, line 3, is not valid JSON"),
        ("set.json", b'{"prompt": "a"}', r"Expected a list"),
        ("set.jsonl", b'"a"\n', r"line 1, holds str data"),
        (
            "set.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}\n',
            r"line 2, has the fields text\. .*instruction or prompt or goal",
        ),
        ("set.jsonl", b"{}\n", r"line 1, has no fields"),
        ("set.jsonl", b'{"prompt": 3}\n', r"line 1,: the field prompt is 3\. Expected text"),
        ("set.json", b'["a", null]', r"record 2, holds NoneType data"),
        ("set.csv", b"question,category\na,b\n", r"set\.csv, line 2, has the fields question, category"),
        ("set.csv", b'prompt\n"a\n', r"set\.csv, after line 1, is not valid CSV"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_missing_file_directory_and_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.txt cannot be read \(No such file"):
        read_prompts(tmp_path / "absent.txt")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json is a directory"):
        read_prompts(tmp_path / "folder.json")
    with pytest.raises(InputError, match="built-in prompt set 'evil'"):
        builtin("evil")
    with pytest.raises(InputError, match="limit of 0"):
        builtin("harmful").take(0)


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_txt_is_split_at_line_feeds_only(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "set.txt"
    path.write_bytes(f"a{separator}b\r\nc\n".encode())
    assert read_prompts(path).instructions == (f"a{separator}b", "c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.txt", "a\0b", "line 1, holds a NUL character"),
        ("set.json", '["\\u0000"]', "record 1, holds a NUL"),
        ("set.json", '["\\ud800"]', "half of a surrogate pair"),
        ("set.json", "[" * 100_000, "nested"),
        ("set.jsonl", f'{{"prompt": "a", "n": {10**30}}}', "line 1, .*64 bits"),
        ("set.txt", "a" * 1_000_001, "1,000,001 characters"),
    ],
)
def test_requests_that_no_model_can_be_asked(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)
