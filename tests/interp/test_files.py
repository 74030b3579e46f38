"""What a kill leaves behind while something is written is removed later, and nothing else."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interp.errors import InputError
from interp.files import STALE, atomic_directory, atomic_file, is_full, locked, trouble_with_disk


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


HOLD = """
import sys, time
from pathlib import Path
from interp.files import locked

with locked(Path(sys.argv[1]), "go away"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=rf"in use by the process {holder.pid} on .*Wait for it, or go away"),
            locked(tmp_path / "run", "go away"),
        ):
            pytest.fail("two hold it")
        holder.kill()
    assert (tmp_path / "run" / ".lock.pid").exists(), "what a kill leaves"
    with (
        locked(tmp_path / "run", "go away"),
        pytest.raises(InputError, match=f"process {os.getpid()} on"),
        locked(tmp_path / "run", "go away"),
    ):
        pytest.fail("two hold it")
    with locked(tmp_path / "run", "go away"):
        assert (tmp_path / "run" / ".lock.pid").exists()
    assert not (tmp_path / "run" / ".lock.pid").exists()


def test_a_folder_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    writers = (lambda path: locked(path, "go away"), atomic_file, atomic_directory)
    for writer in writers:
        with pytest.raises(InputError, match=r"file/out.*can"), writer(tmp_path / "file" / "out"):
            pytest.fail("nothing can be there")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("StorageFull")])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "out").write_text("before")
    with (
        pytest.raises(InputError, match=r"out cannot be written .*Free space") as caught,
        atomic_file(tmp_path / "out"),
    ):
        raise error
    assert caught.value.__cause__ is error
    with pytest.raises(InputError, match="other cannot be written"), atomic_directory(tmp_path / "other"):
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "before")]


def test_a_size_that_the_system_does_not_allow(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError, match="out cannot be written"), atomic_file(tmp_path / "out") as temporary:
            temporary.write_bytes(b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_what_is_no_trouble_with_the_disk(tmp_path: Path) -> None:
    for error in (OSError(errno.ENOENT, "No such file"), ValueError("x"), BrokenPipeError(errno.EPIPE, "Broken pipe")):
        assert trouble_with_disk(error) is None
        assert not is_full(error)
        with pytest.raises(type(error)), atomic_file(tmp_path / "out"):
            raise error
    assert "cannot be used (Permission denied)" in str(
        trouble_with_disk(PermissionError(errno.EACCES, "Permission denied", "f"))
    )
