"""An interrupted run goes on where it was: nothing lost, nothing asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from interp.generation import generate
from interp.opening import load
from interp.quantize.gguf_f16 import write_f16
from probes.harness.prompts import builtin
from tests.killed_run import KILLS
from tests.writer_models import write_checkpoint

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("pair")
    baseline = write_checkpoint("llama", directory / "base")
    write_f16(baseline, directory / "cell.gguf")
    return baseline, directory / "cell.gguf"


@pytest.mark.slow
def test_ten_kills_lose_and_repeat_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killed_run", *map(str, pair), str(tmp_path), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=600, check=True)
    story = json.loads(ran.stdout)
    table = pd.read_parquet(tmp_path / "run" / "refusal.parquet")

    assert story["exit"] == 0
    assert [kill["signal"] for kill in story["kills"]] == [signal.SIGKILL] * KILLS
    assert len({kill["asked"] for kill in story["kills"]}) > 3, "the kills hit a run under way"
    assert table.groupby("cell").size().to_dict() == {"baseline": 96, "cell": 96}
    assert not table.duplicated(["cell", "task", "sample_id", "epoch"]).any()

    names = {"base": "baseline", "cell.gguf": "cell"}
    prompts = {(row.cell, row.sample_id): row.prompt_sha256 for row in table.itertuples()}
    for kill in story["kills"]:
        assert set(kill["finished"]) <= set(story["final"]), "the very same samples are in the final logs"
        asked_later = {tuple(line.split()) for line in story["journal"][kill["asked"] :]}
        asked_later = {(names[path], sha256) for path, sha256 in asked_later}
        done = [(cell, prompts[cell, sample]) for cell, sample, _ in map(str.split, kill["finished"])]
        assert not asked_later & set(done)


@pytest.mark.slow
def test_the_answers_are_those_of_an_uninterrupted_run(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from probes.refusal.engines import EngineSettings
    from probes.refusal.probe import build_tasks, measure
    from probes.refusal.run import BehaviourRun
    from probes.refusal.subjects import LocalSubject

    baseline, cell = map(str, pair)
    run = BehaviourRun(tmp_path / "run", build_tasks(["refusal"], limit=12), max_new_tokens=6, connections=8)
    subject = LocalSubject(EngineSettings(baseline), batch_size=4)
    other = LocalSubject(EngineSettings(cell, like=baseline), batch_size=4)
    first = measure(subject, {"cell": other}, run).table
    again = measure(subject, {"cell": other}, run).table
    pd.testing.assert_frame_equal(first, again)

    model = load(baseline)
    ids = model.token_ids(builtin("harmful").take(12).instructions, chat=True)
    expected = {model.tokenizer.decode(generate(model, [i], 6)[0].tokens, skip_special_tokens=True) for i in ids}
    assert set(first["response"]) == expected


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from tests.probes.refusal.test_servers import answered

    paths = ["--baseline", str(pair[0]), "--quantized", f"q={pair[1]}", "--out", str(tmp_path)]
    settings = ["--task", "refusal", "--max-tokens", "64", "--batch-size", "1", "--no-determinism"]
    command = [sys.executable, "-m", "probes.refusal", *paths, *settings]
    cell, environment = tmp_path / "cells" / "baseline", os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not answered(cell) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "run the same command to go on" in said
    assert "Traceback" not in said
    before = answered(cell)
    assert before
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300).returncode == 0
    assert before <= answered(cell)
    assert pd.read_parquet(tmp_path / "refusal.parquet").groupby("cell").size().to_dict() == {"baseline": 128, "q": 128}
