"""The harness itself: inputs are made again from their numbers, and what a reader does wrong is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from interp.errors import InputError
from tests.fuzz import worker
from tests.fuzz.mutations import mutate, mutate_json
from tests.fuzz.worker import Reader, damage, outcomes

ROOT = Path(__file__).parents[1]


def _misbehave(folder: Path) -> object:
    content = (folder / "a.bin").read_bytes()
    match content[0] % 6:
        case 0:
            raise InputError("refused")
        case 1:
            raise KeyError("a bug")
        case 2:
            time.sleep(60)
        case 3:
            os.abort()
        case 4:
            return bytearray(3 * 2**30)
    return content


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed" / "a.bin").write_bytes(bytes(range(64)))
    return Reader("misbehaving", (tmp_path / "seed",), _misbehave)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_every_kind_of_misbehaviour_is_a_finding(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SECONDS", 0.5)
    found = {outcome.what.split(":")[0].split("(")[0].strip() for outcome in outcomes(reader, range(60))}
    assert found >= {"", "refused.", "KeyError", "no answer within 0.5 s", "the process died", "MemoryError"}


def test_an_accepted_input_is_checked(reader: Reader) -> None:
    wrong = Reader("checked", reader.seeds, lambda folder: 1, check=lambda folder, found: f"{found} is wrong")
    assert {outcome.what for outcome in outcomes(wrong, range(3))} == {"accepted, but 1 is wrong"}


def test_an_input_is_determined_by_its_number(reader: Reader, tmp_path: Path) -> None:
    contents = [
        damage(reader, number, tmp_path / f"{again}-{number}").read_bytes() for again in "ab" for number in range(20)
    ]
    assert contents[:20] == contents[20:]
    assert len(set(contents)) > 10
    assert (reader.seeds[0] / "a.bin").read_bytes() == bytes(range(64))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.toml", "a.csv", "a.gguf", "a.safetensors", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff", b'{"a": [1, {"b": null}]}', b'a = 1\n[b]\nc = "x"\n'])
def test_mutations_take_any_content(name: str, content: bytes) -> None:
    for seed in range(50):
        assert isinstance(mutate(Random(seed), name, content), bytes)


def test_json_is_damaged_within_its_structure() -> None:
    content = json.dumps({"bits": 4, "groups": {"size": 16}}).encode()
    changed = [mutate_json(Random(seed), content) for seed in range(200)]
    assert sum(b'"bits": 4' in text for text in changed) > 50
    assert any(b'"size": NaN' in text for text in changed)
    assert any(b"[" * 100_000 in text for text in changed)


@pytest.mark.slow
def test_no_reader_misbehaves() -> None:
    """A short run; `make fuzz` is the long one."""
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "150", "--seconds", "0.8"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
