"""A model that answers in a process of its own: the same answers, and its end from every side."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pandas as pd
import pytest
import torch

from interp.errors import InputError
from probes.refusal import subjects
from probes.refusal.engine_process import EngineProcess
from probes.refusal.engines import EngineSettings, HookedEngine
from probes.refusal.probe import build_tasks
from probes.refusal.run import BehaviourRun
from probes.refusal.stopped import Stopped
from probes.refusal.subjects import LocalSubject

PROMPTS = [[5, 6, 7], [8, 9]]
MANY = [[5, 6, 7]] * 50_000
"""Prompts that keep any machine busy until somebody ends it."""


@pytest.fixture(scope="module")
def path(tiny: Callable[[str], Path]) -> Path:
    return tiny("llama")


@pytest.fixture
def engine(path: Path) -> Iterator[EngineProcess]:
    engine = EngineProcess(EngineSettings(str(path)))
    yield engine
    engine.stop()


def test_its_answers_are_those_of_the_model_here(engine: EngineProcess, path: Path) -> None:
    here = HookedEngine(EngineSettings(str(path)))
    assert engine.generate(PROMPTS, 8) == here.generate(PROMPTS, 8)
    assert torch.equal(engine.last_logits(PROMPTS), here.last_logits(PROMPTS))


def test_a_path_holds_wherever_the_command_stands(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    engine = EngineProcess(EngineSettings(path.name, like=path.name))
    assert len(engine.generate(PROMPTS, 1)) == 2
    engine.stop()


def test_bad_input_is_said_in_its_own_words(engine: EngineProcess, path: Path) -> None:
    with pytest.raises(InputError) as there:
        engine.generate([[10**6]], 1)
    with pytest.raises(InputError) as here:
        HookedEngine(EngineSettings(str(path))).generate([[10**6]], 1)
    assert str(there.value) == str(here.value)
    assert len(engine.generate(PROMPTS, 1)) == 2


def test_a_process_that_is_killed_from_outside_is_told(engine: EngineProcess) -> None:
    engine.generate(PROMPTS, 1)
    Timer(0.5, os.kill, [_pid(engine), signal.SIGKILL]).start()
    with pytest.raises(InputError, match="exit status -9"):
        engine.generate(MANY, 64)


def test_it_stops_at_once_and_leaves_nothing(engine: EngineProcess) -> None:
    engine.generate(PROMPTS, 1)
    pid = _pid(engine)
    Timer(0.5, engine.stop).start()
    with pytest.raises(Stopped):
        engine.generate(MANY, 64)
    engine.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(Stopped):
        engine.generate(PROMPTS, 1)


def test_a_long_run_is_answered_by_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers() -> pd.DataFrame:
        run = BehaviourRun(tmp_path / str(subjects.MANY), build_tasks(["refusal"], limit=3), 4, connections=4)
        return run.answers("cell", LocalSubject(EngineSettings(str(path)), batch_size=2), "hooked")

    here = answers()
    monkeypatch.setattr(subjects, "MANY", 3)
    monkeypatch.setattr(HookedEngine, "generate", None)  # nothing is computed in this process
    pd.testing.assert_frame_equal(answers(), here)


def _pid(engine: EngineProcess) -> int:
    process = engine._child._process
    assert process is not None
    return process.pid
