"""Split GGUF files, written by the gguf package as llama.cpp splits them."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import torch

from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from tests.gguf_files import write_gguf
from tests.tiny_models import bare_model

Q8_0 = gguf.GGMLQuantizationType.Q8_0
FIRST, SECOND = "model-00001-of-00004.gguf", "model-00002-of-00004.gguf"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole/model.gguf`, and `parts/` with the same model in four files."""
    root = tmp_path_factory.mktemp("split")
    model = bare_model("llama")
    for name, most in (("whole", 0), ("parts", 8)):
        (root / name).mkdir()
        write_gguf(root / name / "model.gguf", model.state_dict(), model.config, "llama", Q8_0, most_tensors=most)
    return root


@pytest.fixture
def parts(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written / "parts", tmp_path / "parts")


@pytest.mark.parametrize("given", [".", FIRST, SECOND])
def test_every_tensor_is_that_of_the_whole_file(given: str, written: Path) -> None:
    whole, split = open_checkpoint(written / "whole" / "model.gguf"), open_checkpoint(written / "parts" / given)
    assert split.path == written / "parts" / FIRST
    assert split.names() == whole.names()
    for name in whole.names():
        assert torch.equal(split.tensor(name), whole.tensor(name))
    assert split.bits_per_weight() == whole.bits_per_weight()
    assert split.metadata() == whole.metadata()
    assert split.warnings == []
    assert split.stored_bytes() == sum(file.stat().st_size for file in (written / "parts").iterdir())


def test_a_first_part_of_metadata_alone(written: Path, tmp_path: Path) -> None:
    model = bare_model("llama")
    state, file = model.state_dict(), tmp_path / "model.gguf"
    write_gguf(file, state, model.config, "llama", Q8_0, most_tensors=10, small_first=True)
    whole, split = open_checkpoint(written / "whole"), open_checkpoint(tmp_path)
    assert gguf.GGUFReader(split.path).tensors == []
    assert all(torch.equal(split.tensor(name), whole.tensor(name)) for name in whole.names())


def test_another_part_is_another_checkpoint(parts: Path) -> None:
    before = open_checkpoint(parts).fingerprint()
    last = sorted(parts.iterdir())[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert open_checkpoint(parts).fingerprint() != before


def test_a_missing_part_is_named(parts: Path) -> None:
    (parts / SECOND).unlink()
    with pytest.raises(InputError, match=rf"The part .*{SECOND} is missing\. Expected all 4 parts"):
        open_checkpoint(parts)


def test_a_missing_first_part_is_named(parts: Path) -> None:
    (parts / FIRST).unlink()
    with pytest.raises(InputError, match=rf"The part .*{FIRST} is missing"):
        open_checkpoint(parts / SECOND)
    with pytest.raises(InputError, match=r"holds 3 \.gguf files"):
        open_checkpoint(parts)


def test_a_part_under_another_name_is_told(parts: Path) -> None:
    shutil.copyfile(parts / "model-00003-of-00004.gguf", parts / SECOND)
    with pytest.raises(InputError, match=rf"{SECOND} says that it is part 3 of 4\. Expected part 2 of 4"):
        open_checkpoint(parts)
    shutil.copyfile(parts / FIRST, parts / "renamed.gguf")
    with pytest.raises(InputError, match=r"split into 4 files\. Expected a name like model-00001-of-00004\.gguf"):
        open_checkpoint(parts / "renamed.gguf")


def test_a_part_of_another_model_is_told(parts: Path, tmp_path: Path) -> None:
    model = bare_model("llama")
    other = tmp_path / "other.gguf"
    write_gguf(other, model.state_dict(), model.config, "llama", Q8_0, most_tensors=9)
    shutil.copyfile(tmp_path / SECOND.replace("model", "other"), parts / SECOND)
    with pytest.raises(InputError, match=r"is in both .*00002-of-00004\.gguf and model-00003|hold \d+ tensors"):
        open_checkpoint(parts)


def test_a_truncated_part_is_told(parts: Path) -> None:
    content = (parts / SECOND).read_bytes()
    (parts / SECOND).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is truncated"):
        open_checkpoint(parts)
