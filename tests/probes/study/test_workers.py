"""Several workers on one study: shards, signals of a scheduler, kills, and what `status` and `merge` make of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest

from interp import claims, cli
from interp.errors import InputError
from interp.files import sha256
from probes.study import checkpoints
from probes.study import run as studies
from probes.study.reader import parse_study, read_study
from probes.study.run import merge_study, open_run, run_study, study_status
from probes.study.shards import Shard
from probes.study.step import Step, StepContext
from probes.study.workers import model_claim, roster
from tests.killed_workers import KILLS, WORKERS
from tests.study_files import PARTS_OF_EACH, Invoke, write_models

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a study of two models, and what one worker made of it."""
    file = write_models(tmp_path_factory.mktemp("study"), 2)
    run_study(read_study(file), file.parent / "alone")
    return file.parent


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "_report", lambda _: None)


def tables(run: Path) -> dict[str, str]:
    """Every table of a run → the hash of its bytes."""
    return {str(file.relative_to(run)): sha256(file) for file in sorted(run.rglob("*.parquet"))}


def documents(run: Path) -> dict[str, Any]:
    """What is said of every table, but for times and machines."""
    return {str(file.relative_to(run)): _timeless(json.loads(file.read_text())) for file in sorted(run.rglob("*.json"))}


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(item) for key, item in value.items() if key not in ("seconds", "host")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def test_two_shards_give_the_tables_of_one_worker(original: Path, tmp_path: Path, invoke: Invoke, capsys: Any) -> None:
    run = tmp_path / "run"
    for number in (1, 2):
        assert invoke("run", original / "study.toml", "--out", run, "--shard", f"{number}/2") == cli.Exit.MEASURED
        said = capsys.readouterr().err
        assert f"shard {number}/2: tiny{number}: ✓ {PARTS_OF_EACH} done" in said
        assert f"next: python -m probes.study merge {run}" in said.replace("\n", " ")
        assert not (run / "matrix.json").exists()
    assert invoke("merge", run) == cli.Exit.MEASURED
    assert tables(run) == tables(original / "alone")
    assert len(tables(run)) > 2 * PARTS_OF_EACH
    shutil.rmtree(run / ".workers")
    alone = documents(original / "alone")
    assert documents(run) == {name: about for name, about in alone.items() if not name.startswith(".workers")}
    assert (run / "report.html").exists()


@pytest.mark.usefixtures("no_report")
def test_merging_tells_what_is_not_there(original: Path, tmp_path: Path, invoke: Invoke, capsys: Any) -> None:
    run = tmp_path / "run"
    run_study(read_study(original / "study.toml"), run, shard=Shard(2, 2))
    assert invoke("merge", run) == cli.Exit.PARTLY_MEASURED
    said = " ".join(capsys.readouterr().err.split())
    assert f"tiny1: {PARTS_OF_EACH} parts are not measured yet, and nobody is at work" in said
    assert open_run(run).matrix["model"].unique().tolist() == ["tiny2"]
    assert run_study(read_study(original / "study.toml"), run, shard=Shard(3, 3)).status.empty
    assert merge_study(run, read_study(original / "study.toml")).matrix.equals(open_run(run).matrix)


def test_shards_have_whole_models_and_as_many_cells_as_can_be() -> None:
    cells = {"a": 1, "b": 5, "c": 2, "d": 2, "e": 4}
    names = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K"]
    text = "".join(
        f'[[models]]\nname = "{name}"\norganism = "llama"\nquantize = {json.dumps(names[:count])}\n'
        for name, count in cells.items()
    )
    study = parse_study(text, Path())
    assert [Shard(number, 3).models(study) for number in (1, 2, 3)] == [["b"], ["e", "a"], ["c", "d"]]
    shares = [Shard(number, 9).models(study) for number in range(1, 10)]
    assert sorted(name for share in shares for name in share) == sorted(cells)
    assert all(len(share) <= 1 for share in shares)


ARRAY = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("2/4", {}, Shard(2, 4)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_STEP": "4"}, Shard(3, 3)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_ID": "5"}, Shard(2, 3)),
        ("0/4", {}, "no shard '0/4'. Expected a number from 1"),
        ("5/4", {}, "no shard '5/4'"),
        ("1/4/2", {}, "NUMBER/COUNT, for example 1/4, or auto"),
        ("auto", {}, "no task of a Slurm array: SLURM_ARRAY_TASK_ID=, SLURM_ARRAY_TASK_COUNT="),
        ("auto", ARRAY, "no shard '12 of 4 to … by 1'"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_STEP": "3"}, "no shard '12 of 4 to … by 3'"),
    ],
)
def test_which_shard(text: str, environment: dict[str, str], expected: Shard | str) -> None:
    if isinstance(expected, Shard):
        assert Shard.parse(text, environment) == expected
        return
    with pytest.raises(InputError) as error:
        Shard.parse(text, environment)
    assert expected in " ".join(str(error.value).split())


@pytest.mark.parametrize(("number", "finished"), [(signal.SIGUSR1, 3), (signal.SIGTERM, 2)])
def test_a_scheduler_stops_a_worker(
    original: Path, tmp_path: Path, invoke: Invoke, capsys: Any, monkeypatch: Any, number: int, finished: int
) -> None:
    """In the third part: one signal lets it be finished, the other drops it; the same command goes on."""
    measured, begun, run = Step.results, [], tmp_path / "run"

    def signalled(self: Step, context: StepContext, options: Mapping[str, Any]) -> Any:
        begun.append(self.name)
        if len(begun) == 3:
            os.kill(os.getpid(), number)
        return measured(self, context, options)

    monkeypatch.setattr(Step, "results", signalled)
    arguments = ("run", original / "study.toml", "--out", run, "--shard", "1/2")
    assert invoke(*arguments) == cli.Exit.REQUEUE == 75
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("stopped; what was finished is kept, run the same command to go on")
    assert claims.newest(model_claim(run, "tiny1")) is None
    row = roster(run).iloc[0]
    assert (row["state"], row["shard"], row["finished"]) == ("stopped", "1/2", finished)
    assert invoke(*arguments) == cli.Exit.MEASURED
    assert len(begun) == PARTS_OF_EACH + 3 - finished


@pytest.mark.usefixtures("no_report")
def test_only_what_failed_is_measured_again(original: Path, tmp_path: Path, monkeypatch: Any, invoke: Invoke) -> None:
    run, measured = tmp_path / "run", Step.results

    def broken(self: Step, context: StepContext, options: Mapping[str, Any]) -> Any:
        if (context.cell, self.name) == ("dense", "entropy"):
            raise RuntimeError("out of memory")
        return measured(self, context, options)

    monkeypatch.setattr(Step, "results", broken)
    assert invoke("run", original / "study.toml", "--out", run, "--shard", "1/2") == cli.Exit.PARTLY_MEASURED
    monkeypatch.setattr(Step, "results", measured)
    assert run_study(read_study(original / "study.toml"), run, failed_only=True).failures.empty
    left = study_status(read_study(original / "study.toml"), run).groupby("model")["status"].unique().map(list)
    assert left.to_dict() == {"tiny1": ["done"], "tiny2": ["missing"]}
    assert roster(run)["finished"].tolist() == [PARTS_OF_EACH - 1, 1]


def test_a_shard_of_another_study_is_refused(original: Path, tmp_path: Path, invoke: Invoke, capsys: Any) -> None:
    folder = shutil.copytree(original, tmp_path / "study", copy_function=shutil.copy2)
    (folder / "study.toml").write_text(
        (folder / "study.toml").read_text().replace("max_new_tokens = 4", "max_new_tokens = 5")
    )
    arguments = ("run", folder / "study.toml", "--out", folder / "alone", "--shard", "1/2")
    assert invoke(*arguments) == cli.Exit.BAD_INPUT
    said = " ".join(capsys.readouterr().err.split())
    assert "are of another study: the study file differ. Expected the same study in all shards" in said
    assert invoke(*arguments, "--changed") == cli.Exit.MEASURED
    assert invoke(*arguments) == cli.Exit.MEASURED


def test_status_tells_of_workers(original: Path, tmp_path: Path, invoke: Invoke, capsys: Any) -> None:
    run = shutil.copytree(original / "alone", tmp_path / "run")
    (worker,) = (file for file in (run / ".workers").glob("*.json") if file.name != "study.json")
    told = json.loads(worker.read_text())
    assert told["finished"] == 2 * PARTS_OF_EACH
    assert told["seconds"] > 0
    worker.write_text(json.dumps(told | {"ended": "", "model": "tiny2"}))
    worker.with_name("damaged.json").write_text("{")
    assert invoke("status", run) == 0
    said = capsys.readouterr().out
    assert "Workers" in said
    row = [socket.gethostname(), str(os.getpid()), "lost", "tiny2", str(2 * PARTS_OF_EACH), "0"]
    assert row in [line.split()[:6] for line in said.splitlines()]
    assert invoke("status", run, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert {step["host"] for step in answer["steps"]} == {socket.gethostname()}
    assert answer["workers"][0]["state"] == "lost"
    assert socket.gethostname() not in (run / "study.json").read_text(), "a report with it is shared"


def test_cells_are_written_by_one_worker_while_others_wait(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTSCOPE_CACHE", str(tmp_path))
    (original / "written.toml").write_text('[[models]]\nname = "a"\nbaseline = "base"\nquantize = ["Q8_0", "Q4_0"]\n')
    study, said, written = read_study(original / "written.toml"), Queue[str](), Queue[str]()
    monkeypatch.setattr(checkpoints.log, "print", lambda text, **_: said.put(text))
    monkeypatch.setattr(checkpoints, "_quantized", lambda *_: written.put("by the other") or {})
    worker = Thread(target=checkpoints.prepare, args=(study, study.models[0], lambda *_: None))
    cells = checkpoints.cells_directory(original / "base")
    with claims.held(cells.with_name(f".{cells.name}")) as claim:
        worker.start()
        assert said.get(timeout=120) == f"a: waiting for {claim.owner}, who writes its cells"
        assert written.empty()
    worker.join()
    assert written.get(timeout=0) == "by the other"
    assert not list(cells.parent.iterdir())


@pytest.mark.parametrize("code", [0, 5, 75])
def test_the_script_for_slurm_requeues_what_was_stopped(code: int, tmp_path: Path) -> None:
    """With an srun that says what it is to run and ends with this code."""
    for name, end in (("srun", code), ("scontrol", 0)):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/said\nexit {end}\n')
        command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    script = ["sh", str(ROOT / "scripts" / "slurm_array.sh"), "a study.toml", "runs/a"]
    assert subprocess.run(script, env=environment, check=False).returncode == code
    ran = "srun python -m probes.study run a study.toml --out runs/a --shard auto"
    requeued = ["scontrol requeue 7_3"] if code == 75 else []
    assert (tmp_path / "said").read_text().splitlines() == [ran, *requeued]
    assert subprocess.run(script[:3], env=environment, check=False, stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing_while_another_is_at_work(original: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killed_workers", str(original / "study.toml"), str(tmp_path), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=600, check=True)
    story = json.loads(ran.stdout)
    assert story["wrong"] == []
    assert 1 < story["killed"] <= KILLS
    assert story["codes"] == [0] * (WORKERS + 1)
    begun = [line for line in story["journal"] if line[1] == "begun"]
    assert 2 * PARTS_OF_EACH <= len(begun) <= 2 * PARTS_OF_EACH + story["killed"]
    assert len({line[0] for line in begun}) > 2, "workers that were started anew measured, too"
    assert tables(tmp_path / "run") == tables(original / "alone")
