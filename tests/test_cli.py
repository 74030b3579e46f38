"""What all commands do when they are told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = """
import sys, time
from pathlib import Path
import typer
from interp.files import atomic_directory
from probes import cli

app = typer.Typer()

@app.command()
def main(out: Path) -> None:
    with atomic_directory(out) as directory:
        (directory / "half").write_text("written")
        print("working", flush=True)
        time.sleep(60)

cli.run(app)
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_stop_leaves_nothing_behind(kind: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "working\n"
        assert list(tmp_path.iterdir())
        running.send_signal(kind)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted" in said
    assert not list(tmp_path.iterdir())
