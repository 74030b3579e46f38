"""Progress: a bar on a terminal, a line that goes away in a notebook, nothing elsewhere; and no noise on import."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from probes.harness import progress
from probes.study import measuring


def test_a_pipe_gets_the_items_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "log", Console(file=file, force_terminal=False))
    assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "log", Console(file=file, force_terminal=True, width=80))
    assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert "letters" in file.getvalue()


CELL = """
from probes.harness.progress import track
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
        bars.preparing("llama")("train", 30.0, 120.0)
        bars.preparing("llama")("quantize", 1.5, 2.0)
        bars.working_on("llama · AWQ · entropy")
        bars.finished()
    entropy = "llama · AWQ · entropy: {} of 2 parts are measured"
    assert said == ["llama: train: 25%", "llama: quantize: 75%", entropy.format(0), entropy.format(1)]


def test_torchao_s_deprecations_are_not_the_user_s(tiny: Any) -> None:
    code = f"from interp import load; load({str(tiny('llama'))!r})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "Enum subclass" not in finished.stderr
