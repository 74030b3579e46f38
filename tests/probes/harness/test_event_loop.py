"""Behavioural runs and judges where an event loop runs already: in a notebook, and in a program's own."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import nbformat
import pytest
from nbclient import NotebookClient

from probes.harness.event_loop import without_loop
from tests.writer_models import write_checkpoint

RUN = """
import asyncio, tempfile
from pathlib import Path
from probes import judges, refusal
from probes.refusal.probe import build_tasks
from probes.refusal.engines import EngineSettings
from probes.judges.template import read_template
from probes.judges.judge import Judge
from probes.judges.settings import Patience
from probes.refusal.run import BehaviourRun
from probes.refusal.subjects import LocalSubject
from probes.judges.verdict_store import VerdictStore

path, unpatched = Path({path!r}), asyncio.run
folder = Path(tempfile.mkdtemp())
run = BehaviourRun(folder / "run", build_tasks(["refusal"], limit=2), 3, connections=4)
subject = LocalSubject(EngineSettings(str(path)), batch_size=4)
outcomes = refusal.measure(subject, {{"same": subject}}, run).table
with VerdictStore(folder / "verdicts.sqlite") as store:
    judge = Judge(f"quantscope/{{path}}", read_template(None), store, Patience(max_tokens=4))
    judged = judges.measure(outcomes, [judge]).table
print(len(outcomes), judged["judge"].notna().sum(), asyncio.run is unpatched)
"""


def test_in_a_notebook(tmp_path: Path) -> None:
    path = write_checkpoint("llama", tmp_path / "base")
    cell = nbformat.v4.new_code_cell(RUN.format(path=str(path)))
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=300, kernel_name="python3")
    shown: list[str] = []
    handle = client.process_message

    def record(message: dict[str, Any], *arguments: Any) -> Any:
        shown.append(str(message["content"].get("data", {}).get("text/plain", "")))
        return handle(message, *arguments)

    client.process_message = record  # type: ignore[method-assign]
    client.execute()
    printed = "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
    assert printed.split() == ["4", "4", "True"]
    assert {"baseline: 1 of 2", "baseline: 2 of 2", "same: 2 of 2"} <= {text.split(",")[0] for text in shown}
    assert any(text.startswith("judging by") for text in shown)


def test_in_place_where_no_loop_runs() -> None:
    assert without_loop(threading.current_thread) is threading.main_thread()


def test_in_a_thread_where_one_runs() -> None:
    async def called() -> int:
        return without_loop(lambda: anyio.run(anyio.sleep, 0) or threading.get_ident())

    assert asyncio.run(called()) != threading.get_ident()


def test_what_goes_wrong_is_raised() -> None:
    async def called() -> None:
        without_loop(lambda: [][0])

    with pytest.raises(IndexError):
        asyncio.run(called())


def test_an_interrupt_ends_the_work() -> None:
    ended: list[type[BaseException]] = []

    def work() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            while True:
                time.sleep(0.01)
        except BaseException as error:
            ended.append(type(error))
            raise

    async def called() -> None:
        without_loop(work)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(called())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ended == [KeyboardInterrupt]
