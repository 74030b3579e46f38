"""What a kill leaves behind while something is written is removed later, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from interp.files import STALE, atomic_directory, atomic_file


def age(path: Path, seconds: float) -> None:
    for part in (*path.rglob("*"), path):
        os.utime(part, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("name", ["cell", "strange[1]*"])
def test_left_over_temporaries_go_after_a_day(name: str, tmp_path: Path) -> None:
    stale, young, growing, other = (tmp_path / f".{n}.{i}" for i, n in enumerate([name, name, name, "other"]))
    for directory in (stale, young, growing, other):
        directory.mkdir()
        (directory / "half").write_text("x")
    file = tmp_path / f".{name}.file"
    file.write_text("x")
    for path in (stale, growing, other, file):
        age(path, STALE + 60)
    (growing / "half").write_text("more")
    os.utime(growing, (0, 0))

    with atomic_directory(tmp_path / name) as directory:
        (directory / "whole").write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {name, young.name, growing.name, other.name}
    age(young, STALE + 60)
    with atomic_file(tmp_path / name / "table") as temporary:
        temporary.write_text("x")
    assert young.exists(), "only of the same path"
