"""Asking models in memory gives the table of the behavioural runner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.errors import InputError
from interp.opening import load
from probes import refusal
from probes.drift import probe as drift
from probes.harness.comparison import Cells
from probes.harness.prompts import PromptSet, builtin
from probes.refusal.ask import ask
from probes.refusal.engines import EngineSettings
from probes.refusal.probe import build_tasks
from probes.refusal.run import BehaviourRun
from probes.refusal.subjects import LocalSubject
from tests.cells import q8_0


@pytest.fixture(scope="module")
def pair(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny("llama"), q8_0(tiny("llama"), tmp_path_factory.mktemp("asking") / "q8.gguf")


def local(path: Path, like: Path | None = None) -> LocalSubject:
    return LocalSubject(EngineSettings(str(path), like=None if like is None else str(like)))


def test_the_runner_s_table(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run = BehaviourRun(tmp_path, build_tasks(["refusal"], limit=6), 5, connections=8)
    expected = refusal.measure(local(pair[0]), {"q8": local(pair[1], pair[0])}, run).table
    baseline = load(pair[0])
    found = ask(baseline, Cells({"q8": pair[1]}, baseline), builtin("harmful").take(6), "refusal", max_new_tokens=5)
    stripped = expected.assign(response=expected["response"].str.strip())  # random models may begin with a blank
    pd.testing.assert_frame_equal(found, stripped, check_dtype=False)


def test_drift_reads_it_and_hooks_act(pair: tuple[Path, Path]) -> None:
    baseline = load(pair[0])
    prompts = builtin("harmful").take(3)
    plain = ask(baseline, {}, prompts, "refusal", max_new_tokens=4)
    with baseline.intervene({"blocks.0.hook_resid_post": lambda resid: 0 * resid}):
        ablated = ask(baseline, {}, prompts, "refusal", max_new_tokens=4)
    assert (plain["response"] != ablated["response"]).any()
    table = pd.concat([plain, ablated.assign(cell="ablated")])
    result = drift.measure(table, "baseline")
    assert result.warnings == []
    assert set(result.table.query("category == 'all'")["n_pairs"]) == {3}


@pytest.mark.parametrize("prompts", [PromptSet("none", ()), PromptSet("long", ("word " * 3000,))])
def test_prompts_that_cannot_be_asked(pair: tuple[Path, Path], prompts: Any) -> None:
    with pytest.raises(InputError):
        ask(load(pair[0]), {}, prompts, "refusal")
