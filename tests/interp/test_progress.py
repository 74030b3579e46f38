"""Progress: a bar on a terminal, a line that goes away in a notebook, lines elsewhere; and no noise on import."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from interp import progress
from probes.study import measuring


def test_a_pipe_gets_the_items_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "log", Console(file=file, force_terminal=False))
    assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert file.getvalue() == ""


@pytest.fixture(autouse=True)
def every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 30.0)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to standard error where it is a pipe."""
    file = io.StringIO()
    for module in (progress, measuring):
        monkeypatch.setattr(module, "log", Console(file=file, force_terminal=False, width=80))
    return file


def test_a_pipe_gets_a_line_every_half_a_minute(printed: io.StringIO) -> None:
    clock = Clock()
    with progress.Lines("cells", 9, clock=clock) as lines:
        for done in range(9):
            lines.show(done)
            clock.now += 12
        lines.show(9)
    assert printed.getvalue().splitlines() == [
        "cells: 3 of 9, 36 s so far, about 72 s left",
        "cells: 6 of 9, 72 s so far, about 36 s left",
        "cells: 9 of 9, 108 s so far, about 0 s left",
        "cells: 9 of 9 after 108 s",
    ]


def test_a_line_comes_also_while_nothing_is_finished(printed: io.StringIO) -> None:
    clock = Clock()
    with progress.Lines("attribution", clock=clock) as lines:
        for _ in range(10):
            clock.now += 15
            lines.beat()
    said = printed.getvalue().splitlines()
    assert said[:2] == ["attribution: 0%, 30 s so far", "attribution: 0%, 60 s so far"]
    assert len(said) == 6


def test_what_was_done_before_does_not_make_the_rest_seem_short(printed: io.StringIO) -> None:
    clock = Clock()
    with progress.Lines("parts", 100, done=90, clock=clock) as lines:
        clock.now += 60
        lines.show(95)
    assert "parts: 95 of 100, 60 s so far, about 60 s left" in printed.getvalue()


def test_the_thread_speaks_by_itself(printed: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with progress.Lines("waiting"):
        started = time.monotonic()
        while "waiting: 0%" not in printed.getvalue() and time.monotonic() - started < 60:
            time.sleep(0.01)
    assert "waiting: 0%" in printed.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (119.4, "119 s"),
        (120, "2 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said


def test_every_stage_of_several_says_how_long_it_took(printed: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHORTEST", 0.0)
    with progress.Stages() as stages:
        for name in ("AWQ", "GPTQ"):
            for done in (1, 2):
                stages.show(name, done, 2)
    assert printed.getvalue().splitlines() == ["AWQ: 100% after 0 s", "GPTQ: 100% after 0 s"]


def test_a_study_in_a_pipe_says_each_cell(printed: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = measuring.Bars()
    with bars.parts(3):
        with bars.preparing("llama") as report:
            report("train", 1.0, 1.0)
        for cell, step in (("AWQ", "entropy"), ("AWQ", "margin"), ("Q2_K", "entropy")):
            bars.working_on(f"llama · {cell} · {step}")
            bars.finished()
    assert printed.getvalue().splitlines() == [
        "llama · Q2_K · entropy: 2 of 3, 0 s so far, about 0 s left",
        "llama · Q2_K · entropy: 3 of 3 after 0 s",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "log", Console(file=file, force_terminal=True, width=80))
    assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert "letters" in file.getvalue()


CELL = """
from interp.progress import track
for letter in track("abc", "letters"):
    print(letter)
try:
    for letter in track("abc", "more"):
        raise KeyError
except KeyError:
    pass
"""


def test_a_notebook_gets_a_line_that_goes_away() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    seen: list[str] = []

    def keep(cell: Any, cell_index: int, **_: Any) -> None:
        seen.extend(str(output) for output in cell.outputs)

    client = NotebookClient(notebook, timeout=120, kernel_name="python3", on_cell_executed=keep)
    messages: list[str] = []
    handle = client.process_message

    def record(message: dict[str, Any], *arguments: Any) -> Any:
        messages.append(str(message["content"].get("data", {}).get("text/plain", "")))
        return handle(message, *arguments)

    client.process_message = record  # type: ignore[method-assign]
    client.execute()
    assert "letters: 0 of 3" in messages
    assert any(text.startswith("letters: 2 of 3, about ") for text in messages)
    shown = [output.get("data", {}).get("text/plain", "") for output in notebook.cells[0].outputs]
    assert [text for text in shown if text] == []
    assert "".join(output.get("text", "") for output in notebook.cells[0].outputs) == "a\nb\nc\n"


def test_a_study_says_in_a_notebook_what_it_prepares_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @contextmanager
    def line() -> Iterator[Callable[[str], object]]:
        yield said.append

    monkeypatch.setattr(measuring, "log", Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(measuring, "line", line)
    bars = measuring.Bars()
    with bars.parts(2):
        with bars.preparing("llama") as report:
            report("train", 30.0, 120.0)
            report("quantize", 1.5, 2.0)
        bars.working_on("llama · AWQ · entropy")
        bars.finished()
    entropy = "llama · AWQ · entropy: {} of 2 parts are measured"
    preparing = "llama · preparing: 0 of 2 parts are measured"
    assert said == [preparing, "llama: train: 25%", "llama: quantize: 75%", entropy.format(0), entropy.format(1)]


def test_torchao_s_deprecations_are_not_the_user_s(tiny: Any) -> None:
    code = f"from interp import load; load({str(tiny('llama'))!r})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "Enum subclass" not in finished.stderr
