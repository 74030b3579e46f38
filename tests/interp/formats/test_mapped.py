"""Mapped files: what is read through a new mapping is what was there, and a file that changed is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interp import open_checkpoint
from interp.errors import InputError
from interp.formats import mapped
from tests.cells import q8_0
from tests.tiny_models import write


def test_files_are_mapped_anew_after_so_many_bytes_of_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    opened: list[Path] = []
    files = mapped.Mapped(lambda path: opened.append(path) or len(opened))  # type: ignore[func-returns-value]
    for file in (first, second):
        file.write_bytes(b"x")
    half = mapped.AT_MOST // 2
    assert [files.reading(file, half) for file in (first, second, first, first, second)] == [1, 2, 3, 3, 4]
    assert files.reading(second, 2 * mapped.AT_MOST) == 5  # one tensor may be larger
    assert files.reading(first, 1) == 6
    assert opened == [first, second, first, second, second, first]


def test_tensors_are_the_same_whatever_the_mapping(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tiny("llama"), q8_0(tiny("llama"), tmp_path / "cell.gguf")):
        whole = open_checkpoint(path)
        before = {name: whole.tensor(name).clone() for name in whole.names()}
        monkeypatch.setattr(mapped, "AT_MOST", 1)
        again = open_checkpoint(path)
        kept = [again.tensor(name) for name in again.names()]
        assert all(torch.equal(tensor, before[name]) for name, tensor in zip(again.names(), kept, strict=True))
        monkeypatch.undo()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(write("llama", tmp_path / "model"))
    monkeypatch.setattr(mapped, "AT_MOST", 1)
    first, second, *_ = checkpoint.names()
    checkpoint.tensor(first)
    write("gpt2", tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match="changed or moved while it was read"):
        checkpoint.tensor(second)
