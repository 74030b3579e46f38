"""Pieces of an interrupted command: not computed again, and the tables are those of a run without an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from interp import cli
from probes.attribution.parts import Part
from probes.attribution.settings import PartKind
from probes.causal import __main__ as causal_command
from probes.geometry import __main__ as geometry_command
from probes.harness import pieces
from probes.harness.pieces import determined_by, keeping, kept
from probes.why import __main__ as why_command
from tests.cells import HARMFUL, HARMLESS, q8_0

ROOT = Path(__file__).parents[3]
COMMANDS: dict[str, tuple[typer.Typer, list[str]]] = {
    "geometry": (geometry_command.app, []),
    "causal": (causal_command.app, ["--experiment", "restore", "--kind", "layer", "--draws", "1", "--no-refusals"]),
    "why": (why_command.app, ["--draws", "1"]),
}


@pytest.fixture(scope="module")
def pair(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny("llama"), q8_0(tiny("llama"), tmp_path_factory.mktemp("cells") / "q8.gguf")


@pytest.fixture
def run(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command in this process and returns its exit code."""
    monkeypatch.setattr("probes.causal.exchange.READ_TOKENS", 2)
    monkeypatch.setattr(cli, "_leave", sys.exit)
    for prompts in (HARMFUL, HARMLESS):
        (tmp_path / prompts.name).write_text("\n".join(prompts.instructions))

    def invoke(name: str, out: str) -> int:
        app, own = COMMANDS[name]
        files = ["--harmful", str(tmp_path / HARMFUL.name), "--harmless", str(tmp_path / HARMLESS.name)]
        given = ["--baseline", str(pair[0]), "--quantized", str(pair[1]), *files, "--out", str(tmp_path / out)]
        prompts = [] if name == "geometry" else ["--prompts", "3"]
        monkeypatch.setattr(sys, "argv", ["probe", *given, *own, *prompts])
        with pytest.raises(SystemExit) as exit_:
            cli.run(app)
        return int(exit_.value.code or 0)

    return invoke


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the pieces that are computed, in order; one that is "stop" interrupts the command after it."""
    keys: list[str] = []
    write = pieces._write

    def noting(file: Path, piece: tuple[Any]) -> None:
        write(file, piece)
        keys.append(file.name)
        if keys.count("stop") and len(keys) > 1 + keys.index("stop") + STOP_AFTER:
            keys.remove("stop")
            raise KeyboardInterrupt

    monkeypatch.setattr(pieces, "_write", noting)
    return keys


STOP_AFTER = 2


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_goes_on_and_ends_with_the_same_bytes(
    name: str, run: Callable[..., int], computed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, "whole") == cli.Exit.MEASURED
    whole = list(computed)
    assert len(whole) == len(set(whole)) > STOP_AFTER + 1
    computed[:] = ["stop"]
    assert run(name, "resumed") == cli.Exit.INTERRUPTED
    assert "what was finished is kept" in capsys.readouterr().err
    before, computed[:] = set(computed), []
    assert len(before) == STOP_AFTER + 1
    assert run(name, "resumed") == cli.Exit.MEASURED
    assert not before & set(computed)
    assert before | set(computed) == set(whole)
    tables = sorted(file.name for file in (tmp_path / "whole").glob("*.parquet"))
    assert tables
    for table in tables:
        assert (tmp_path / "whole" / table).read_bytes() == (tmp_path / "resumed" / table).read_bytes()
    assert not list(tmp_path.glob(f"*/{pieces.FOLDER}"))


def test_nothing_is_said_to_be_kept_where_nothing_is(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pieces, "_write", interrupted)
    assert run("geometry", "out") == cli.Exit.INTERRUPTED
    said = capsys.readouterr().err
    assert "interrupted" in said
    assert "kept" not in said


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    value = {
        "nan": float("nan"),
        "rows": [{"a": np.float64(0.1), "n": np.int64(3), "none": None, "yes": True, "text": "é"}],
        "tensors": (torch.eye(2).bool(), torch.tensor([0.1], dtype=torch.float64)),
        "scores": {Part(PartKind.HEAD, 1, 2): 0.25},
    }
    found = []
    for _ in range(2):
        with keeping(tmp_path / "out"), determined_by("cell"):
            found.append(kept(["x"], lambda: value, (Part, PartKind)))
            (tmp_path / "out" / pieces.FOLDER).rename(tmp_path / "kept") if not (tmp_path / "kept").exists() else None
        if not (tmp_path / "out" / pieces.FOLDER).exists():
            (tmp_path / "kept").rename(tmp_path / "out" / pieces.FOLDER)
    first, second = found
    assert repr(first) == repr(second)
    assert type(second["rows"][0]["a"]) is float
    assert second["scores"][Part(PartKind.HEAD, 1, 2)] == 0.25


def test_a_piece_of_another_cell_or_a_damaged_one_is_computed_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def compute(name: str) -> str:
        calls.append(name)
        return name

    def fail_after(scopes: str) -> None:
        with keeping(tmp_path):
            for scope in scopes:
                with determined_by(scope):
                    assert kept(["x", 1], partial(compute, scope)) == scope
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after("aba")
    assert calls == ["a", "b"]
    for file in (tmp_path / pieces.FOLDER).iterdir():
        file.write_bytes(file.read_bytes()[:-40])
    with keeping(tmp_path), determined_by("a"):
        assert kept(["x", 1], lambda: compute("again")) == "again"
    with determined_by(None), keeping(tmp_path):
        assert kept(["x", 1], lambda: compute("in memory")) == "in memory"
    assert calls == ["a", "b", "again", "in memory"]


def test_sigterm_ends_a_command_within_seconds_and_it_goes_on(pair: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = [
        *("--baseline", str(pair[0]), "--quantized", str(pair[1]), "--out", str(tmp_path)),
        *("--limit", "24", "--prompts", "4", "--experiment", "restore", "--draws", "20", "--every-control"),
    ]
    command = [sys.executable, "-m", "probes.causal", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ)
    folder = tmp_path / pieces.FOLDER
    deadline = time.monotonic() + 240
    while len(list(folder.glob("*.pt"))) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - started < 30  # two seconds on an idle machine, the whole experiment takes minutes
    assert process.returncode == cli.Exit.INTERRUPTED
    assert "what was finished is kept" in " ".join(said.split())
    assert len(list(folder.glob("*.pt"))) >= 20
