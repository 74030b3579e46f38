"""What all commands do when they are told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from interp import cli

COMMAND = """
import signal, sys, time
from pathlib import Path
import typer
from interp.files import atomic_directory
from interp import cli

app = typer.Typer()

@app.command()
def main(out: Path) -> None:
    with atomic_directory(out) as directory:
        (directory / "half").write_text("written")
        with cli.resumable(lambda: out.name == "kept"):
            print("working", flush=True)
            time.sleep(60)

cli.run(app)
"""


@pytest.mark.parametrize(
    ("kind", "shell", "out"),
    [
        (signal.SIGTERM, "", "out"),
        (signal.SIGINT, "", "kept"),
        (signal.SIGHUP, "", "out"),
        (signal.SIGTERM, "trap '' INT; ", "kept"),  # as a shell's `command &`
        (signal.SIGTERM, "trap '' INT HUP; ", "out"),
    ],
)
def test_a_command_that_is_told_to_stop_leaves_nothing_behind(
    kind: signal.Signals, shell: str, out: str, tmp_path: Path
) -> None:
    command = ["sh", "-c", f'{shell}exec "$@"', "sh", sys.executable, "-c", COMMAND, str(tmp_path / out)]
    inherited = (signal.SIGINT, signal.SIGHUP)  # a child ignores what its parent does, under nohup or behind a &
    before = [signal.signal(each, signal.SIG_DFL) for each in inherited]
    try:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        for each, handler in zip(inherited, before, strict=True):
            signal.signal(each, handler)
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "working\n"
        assert list(tmp_path.iterdir())
        running.send_signal(kind)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    kept = "; what was finished is kept, run the same command to go on" if out == "kept" else ""
    assert said.split("\n")[-2] == f"interrupted{kept}"
    assert not list(tmp_path.iterdir())


OTHERS = """
import sys, threading, time
import typer
from interp import cli

app = typer.Typer()

@app.command()
def main(what: str) -> None:
    if what == "compute":
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("working", flush=True)
        time.sleep(60)
    elif what == "bug":
        raise OSError(2, "No such file or directory", "x")
    elif what == "read-only":
        raise OSError(30, "Read-only file system", "x")
    else:
        print("x" * 10_000_000)

cli.run(app)
"""


def test_nobody_waits_for_another_thread(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OTHERS, "compute"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "working\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 130


def test_a_reader_who_has_enough_is_told_apart_from_bugs() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHERS, "print"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(3) == b"xxx"
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(timeout=120) == cli.Exit.UNREAD


def test_the_disk_is_told_apart_from_bugs() -> None:
    def ran(what: str, out: str = "/dev/null") -> tuple[int, str]:
        with open(out, "w") as stream:
            command = [sys.executable, "-c", OTHERS, what]
            done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, timeout=120)
        return done.returncode, " ".join(done.stderr.split())

    code, said = ran("bug")
    assert code == 1
    assert "Traceback" in said
    code, said = ran("read-only")
    assert code == cli.Exit.BAD_INPUT
    assert said.startswith("error: x cannot be used (Read-only file system). Expected a place that can be written")
    if Path("/dev/full").exists():
        code, said = ran("print", "/dev/full")
        assert code == cli.Exit.BAD_INPUT
        assert said.startswith("error: ")
        assert "No space left on device" in said
        assert "Traceback" not in said
