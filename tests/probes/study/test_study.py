"""A study: one file in, one run folder out, whatever interrupts it or fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from inspect_ai.model import ModelAPI
from rich.console import Console

from interp import claims, cli
from interp.checkpoint import Checkpoint, open_checkpoint
from interp.errors import InputError
from interp.opening import load
from probes import direction, entropy, neurons
from probes.harness import comparison
from probes.harness.comparison import Cells
from probes.harness.prompts import read_prompts
from probes.harness.results import Result, read_result
from probes.judges import probe as judges
from probes.predict.cells import read_cells
from probes.report import files
from probes.study import __main__ as study_command
from probes.study import answers, keys, measuring, state, terminal
from probes.study import run as studies
from probes.study.reader import read_study
from probes.study.run import open_run, run_study, study_status
from probes.study.state import PartStatus
from probes.study.step import Asked, StepContext
from probes.study.steps import BY_NAME
from probes.study.workers import joined, model_claim
from tests.killed_study import KILLS
from tests.packed_files import edit
from tests.study_files import PARTS, Invoke, write_study

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study's files and its finished run."""
    file = write_study(tmp_path_factory.mktemp("study"))
    run_study(read_study(file), file.parent / "run")
    return file.parent


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; times are kept, and a study does not look at the place."""
    return shutil.copytree(original, tmp_path / "study", copy_function=shutil.copy2)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that are opened as models from here on."""
    names: list[str] = []

    def counting(path: Any, **options: Any) -> Any:
        names.append(Path(path.path if isinstance(path, Checkpoint) else path).name)
        return load(path, **options)

    monkeypatch.setattr(comparison, "load", counting)
    monkeypatch.setattr(measuring, "load", counting)
    return names


def statuses(folder: Path) -> dict[str, list[str]]:
    """Status → the parts that have it, as `cell step`."""
    table = study_status(read_study(folder / "study.toml"), folder / "run")
    parts = table["cell"] + " " + table["step"]
    return {str(status): list(part) for status, part in parts.groupby(table["status"])}


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_cells_of_a_users_own_model_are_written_and_one_that_cannot_be_stops_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.setenv("QUANTSCOPE_CACHE", str(tmp_path / "cache"))
    (folder / "texts.txt").write_text(" \n")
    study = 'quantize = ["GPTQ", "Q2_K"]\ncalibration = "texts.txt"'
    change(folder / "study.toml", 'baseline = "base"', f'baseline = "base"\n{study}')
    change(folder / "study.toml", '["entropy", "direction", "calibration", "neurons"]', '["entropy"]')
    run = run_study(read_study(folder / "study.toml"), folder / "written")
    table = run.table("entropy").set_index("cell")
    assert set(table.dropna(subset=["entropy"]).index) == {"baseline", "Q2_K", "gguf", "dense"}
    assert set(run.failures["cell"]) == {"GPTQ"}
    assert run.failures["error"].str.contains("no calibration text").all()
    (written,) = (tmp_path / "cache" / "cells").glob("base-*/Q2_K/Q2_K.gguf")
    baseline = load(folder / "base", dtype=torch.float32)
    prompts = [read_prompts(folder / name) for name in ("harmful.txt", "harmless.txt")]
    expected = entropy.measure(baseline, Cells({"Q2_K": written}, baseline), *prompts, force=True).table
    measured = table.loc[["Q2_K"]].reset_index()
    assert sorted(measured["entropy"]) == pytest.approx(sorted(expected.query("cell == 'Q2_K'")["entropy"]))


def test_tables_are_those_of_the_probes_on_all_cells_at_once(original: Path) -> None:
    baseline = load(original / "base", dtype=torch.float32)
    cells = Cells({"gguf": original / "cell.gguf", "dense": original / "cell"}, baseline)
    prompts = [read_prompts(original / name) for name in ("harmful.txt", "harmless.txt")]
    run = open_run(original / "run")
    for probe in (entropy, direction, neurons):
        expected = probe.measure(baseline, cells, *prompts, force=True).table
        name = probe.__name__.removeprefix("probes.")
        found = read_result(original / "run" / "tiny" / f"{name}.json")
        pd.testing.assert_frame_equal(found.table, expected, check_dtype=False, rtol=1e-6)
        assert list(found.settings["cells"]) == ["gguf", "dense"]
        assert found.seconds is not None
        assert found.seconds > 0
        assert run.table(name)["model"].unique().tolist() == ["tiny"]


def test_the_run_folder(original: Path) -> None:
    run = open_run(original / "run")
    assert run.matrix["cell"].tolist().count("baseline") == 1
    assert set(run.matrix["cell"]) == {"baseline", "gguf", "dense"}
    completions = run.table("completions")
    columns = ["model", "cell", "prompts", "prompt", "text", "n_tokens", "finished", "across_engines"]
    outcome = ["label", "refused", "refused_study_lexicon", "outcome"]
    assert completions.columns.tolist() == columns + outcome
    assert completions["outcome"].unique().tolist() == ["broader lexicon"]
    assert completions.groupby(["cell", "prompts"]).size().unique().tolist() == [4]
    assert set(run.table("drift")["cell"]) == {"gguf", "dense"}
    assert (original / "run" / "study.toml").read_text() == (original / "study.toml").read_text()
    assert run.report is not None
    document = json.loads((original / "run" / "study.json").read_text())
    assert [step["status"] for step in document["steps"]] == ["done"] * PARTS
    assert all(step["seconds"] > 0 and len(step["key"]) == 64 for step in document["steps"])


def test_each_checkpoint_is_opened_once_and_a_second_run_opens_none(folder: Path, opened: list[str]) -> None:
    shutil.rmtree(folder / "run")
    study = read_study(folder / "study.toml")
    run_study(study, folder / "run")
    assert opened == ["base", "cell.gguf", "cell"]
    before = (folder / "run" / "tiny" / "parts" / "gguf" / "entropy.parquet").stat()
    run_study(study, folder / "run")
    assert opened == ["base", "cell.gguf", "cell"]
    assert (folder / "run" / "tiny" / "parts" / "gguf" / "entropy.parquet").stat() == before


def test_explanations_are_steps_like_any_other(folder: Path) -> None:
    names = ["depth", "reversion", "coverage", "fragility"]
    change(folder / "study.toml", '["entropy", "direction", "calibration", "neurons"]', str(names).replace("'", '"'))
    change(
        folder / "study.toml",
        "[[models]]",
        "[probes.reversion]\ndraws = 1\n\n[probes.fragility]\ndraws = 2\n\n[[models]]",
    )
    (folder / "texts.txt").write_text("some words\nmore words\n")
    change(folder / "study.toml", 'baseline = "base"', 'baseline = "base"\ncalibration = "texts.txt"')
    run = run_study(read_study(folder / "study.toml"), folder / "run")
    assert set(run.failures["step"]) == {"reversion"}
    assert run.failures["error"].str.contains("before = ").all()

    shutil.copytree(folder / "cell", folder / "before")  # so that the dense cell went all the way back
    change(folder / "study.toml", 'baseline = "base"', 'baseline = "base"\nbefore = "before"')
    run = run_study(read_study(folder / "study.toml"), folder / "run")
    assert run.failures.empty
    back = run.table("reversion").query("of == 'weights' and where == 'all'").set_index("cell")["back"]
    assert back["dense"] == pytest.approx(1)
    assert back["gguf"] == pytest.approx(0, abs=1e-3)
    assert {"gguf", "dense"} <= set(run.table("depth_cells")["cell"]) & set(run.table("coverage")["cell"])
    assert run.table("fragility")["shift"].notna().all()
    assert run.table("fragility").groupby("cell")["bits"].unique().map(list).to_dict() == {"gguf": [16], "dense": [16]}

    read = read_cells([folder / "run"])
    assert read.table[["back_weights", "back_logits", "depth"]].notna().any().all()
    edit(folder / "before", lambda tensors: [t.mul_(2) for t in tensors.values()])
    (folder / "texts.txt").write_text("others\n")
    assert {part.split()[1] for part in statuses(folder)["stale"]} == {"reversion", "coverage"}


def test_what_changes_makes_stale_what_depends_on_it(folder: Path, opened: list[str]) -> None:
    assert statuses(folder) == {"done": [f"{cell} {step}" for cell in ("gguf", "dense") for step in STEPS]}
    change(folder / "study.toml", "max_new_tokens = 4", "max_new_tokens = 5")
    assert statuses(folder)["stale"] == [f"{c} {s}" for c in ("gguf", "dense") for s in ("completions", "calibration")]
    change(folder / "study.toml", "max_new_tokens = 5", "max_new_tokens = 4")
    change(folder / "study.toml", "[[models]]", "[probes.neurons]\nseed = 3\n\n[[models]]")
    assert statuses(folder)["stale"] == ["gguf neurons", "dense neurons"]
    (folder / "cell" / "config.json").write_text((folder / "cell" / "config.json").read_text() + "\n")
    assert statuses(folder)["stale"] == ["gguf neurons", *(f"dense {step}" for step in STEPS)]
    run_study(read_study(folder / "study.toml"), folder / "run")
    assert opened == ["base", "cell.gguf", "cell"]
    assert set(statuses(folder)) == {"done"}
    assert read_result(folder / "run" / "tiny" / "neurons.json").settings["seed"] == 3
    change(folder / "harmless.txt", "milk", "a cow")
    assert set(statuses(folder)) == {"stale"}


def test_another_model_of_a_server_makes_its_answers_stale(folder: Path) -> None:
    study = read_study(folder / "study.toml")
    model = study.models[0]
    paths = folder / "base", folder / "cell"

    def key(step: str, server: str | None) -> str:
        cells = [cell.model_copy(update={"server": server}) for cell in model.cells]
        changed = model.model_copy(update={"cells": cells})
        return keys.Keys(study, Asked.of(study)).key(changed, BY_NAME[step], cells[0].called, *paths)

    address = "http://127.0.0.1:8000/v1"
    assert key("completions", None) == key("completions", address) == key("completions", "http://other:80/v1")
    assert len({key("completions", server) for server in (address, f"{address}#a", f"{address}#b")}) == 3
    assert key("calibration", f"{address}#a") != key("calibration", f"{address}#b")
    assert key("entropy", f"{address}#a") == key("entropy", f"{address}#b")


def test_another_system_prompt_is_measured_anew(folder: Path) -> None:
    change(folder / "study.toml", "[prompts]", '[prompts]\nsystem = "told.txt"')
    (folder / "told.txt").write_text("Be terse.")
    assert set(statuses(folder)) == {"stale"}
    run_study(read_study(folder / "study.toml"), folder / "run")
    assert set(statuses(folder)) == {"done"}
    for name in ("entropy", "direction", "neurons", "refusal"):
        assert read_result(folder / "run" / "tiny" / f"{name}.json").settings["system"] == "Be terse."
    (folder / "told.txt").write_text("Be kind.")
    assert set(statuses(folder)) == {"stale"}
    (folder / "told.txt").unlink()
    with pytest.raises(InputError, match=r"prompts\.system.*told\.txt cannot be read"):
        read_study(folder / "study.toml")


STEPS = ("completions", "entropy", "direction", "calibration", "neurons")


def test_one_failing_cell_does_not_stop_the_others(
    folder: Path, invoke: Invoke, opened: list[str], capsys: Any
) -> None:
    shutil.rmtree(folder / "run")
    whole = (folder / "cell.gguf").read_bytes()
    (folder / "cell.gguf").write_bytes(whole[: len(whole) // 2])
    arguments = (folder / "study.toml", "--out", folder / "run")
    assert invoke("run", *arguments) == cli.Exit.PARTLY_MEASURED
    said = " ".join(capsys.readouterr().err.split())
    assert "failed: tiny · gguf" in said
    assert "Traceback" not in said
    found = open_run(folder / "run")
    matrix = found.matrix.set_index("cell")
    assert set(matrix.index) == {"baseline", "dense", "gguf"}
    assert pd.isna(matrix.loc["gguf", "refusal_rate"])
    assert "cell.gguf" in str(matrix.loc["gguf", "reason"])
    assert matrix.loc["gguf", "regime"] == "undetermined"
    assert statuses(folder) == {"done": [f"dense {s}" for s in STEPS], "failed": [f"gguf {s}" for s in STEPS]}
    assert invoke("status", folder / "run", "--json") == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert {s["step"] for s in steps if "cell.gguf" in s["error"]} == {*STEPS} - {"calibration"}
    assert [s["error"] for s in steps if s["cell"] == "gguf"][3] == "calibration needs completions, which failed."

    (folder / "cell.gguf").write_bytes(whole)
    opened.clear()
    assert invoke("run", *arguments) == cli.Exit.MEASURED
    assert opened == ["base", "cell.gguf"]
    assert not pd.isna(open_run(folder / "run").matrix["refusal_rate"]).any()


def test_a_bug_in_one_step_is_reported_and_the_rest_goes_on(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    shutil.rmtree(folder / "run")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(direction, "measure", broken)
    run = run_study(read_study(folder / "study.toml"), folder / "run")
    assert run.failures["step"].tolist() == ["direction", "direction"]
    assert run.failures["error"].tolist() == ["RuntimeError: out of memory"] * 2
    assert len(run.matrix) == 3
    assert pd.isna(run.matrix["cosine"]).all()
    assert "Traceback" in capsys.readouterr().err


def test_no_baseline_is_nothing_measured(folder: Path, invoke: Invoke, capsys: Any) -> None:
    shutil.rmtree(folder / "run")
    (folder / "base" / "model.safetensors").unlink()
    assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.NOTHING_MEASURED
    assert "base" in capsys.readouterr().err


def unchanged(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_model_that_another_worker_measures_is_left_to_it(
    folder: Path, invoke: Invoke, opened: list[str], capsys: Any
) -> None:
    parts = folder / "run" / "tiny" / "parts"
    (parts / "dense" / "entropy.key.json").unlink()
    with claims.held(model_claim(folder / "run", "tiny")):
        assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.PARTLY_MEASURED
        said = " ".join(capsys.readouterr().err.split())
        assert f"tiny: 1 parts are not measured yet, the process {os.getpid()} on {socket.gethostname()} is" in said
    assert opened == []
    assert statuses(folder)["missing"] == ["dense entropy"]
    assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.MEASURED
    assert opened == ["base", "cell"]


def test_a_worker_with_another_study_is_refused_while_one_is_at_work(folder: Path, invoke: Invoke, capsys: Any) -> None:
    study = read_study(folder / "study.toml")
    with joined(folder / "run", keys.agreement(study, Asked.of(study))):
        change(folder / "study.toml", "max_new_tokens = 4", "max_new_tokens = 5")
        change(folder / "harmless.txt", "milk", "a cow")
        before = unchanged(folder)
        assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.BAD_INPUT
        said = " ".join(capsys.readouterr().err.split())
        assert f"the process {os.getpid()} on {socket.gethostname()} measures another study in" in said
        assert ": the study file, the harmless prompts differ. Expected the same study" in said
        assert unchanged(folder) == before


@pytest.mark.parametrize("case", ["older", "damaged", "steps", "other"])
def test_a_folder_of_something_else_is_left_alone(case: str, folder: Path, invoke: Invoke, capsys: Any) -> None:
    state = folder / "run" / "study.json"
    if case == "older":
        state.write_text(json.dumps(json.loads(state.read_text()) | {"schema_version": 0}))
    elif case == "damaged":
        state.write_text("{")
    elif case == "steps":
        state.write_text(json.dumps(json.loads(state.read_text()) | {"steps": [{"model": "tiny"}]}))
    else:
        state.unlink()
    before = unchanged(folder)
    for arguments in (("run", folder / "study.toml", "--out", folder / "run"), ("status", folder / "run")):
        assert invoke(*arguments) == cli.Exit.BAD_INPUT
    said = " ".join(capsys.readouterr().err.split())
    expected = {"older": "schema version 0", "damaged": "is damaged", "steps": "is damaged"}
    expected["other"] = (
        "no study.json: it was not written by a study. Expected a new folder, or one of this study. Move it"
    )
    assert expected[case] in said
    assert unchanged(folder) == before


def test_init_never_overwrites(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "new" / "study.toml"
    assert invoke("init", file) == 0
    assert read_study(file).models[0].name == "llama"
    file.write_text("mine")
    assert invoke("init", file) == cli.Exit.BAD_INPUT
    assert file.read_text() == "mine"


def test_mistakes_in_the_file_write_nothing(folder: Path, invoke: Invoke, capsys: Any) -> None:
    change(folder / "study.toml", 'dtype = "float32"', 'dtyp = "float32"')
    before = unchanged(folder)
    assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.BAD_INPUT
    assert "line 16, models[0].dtyp: unknown key; did you mean 'dtype'?" in " ".join(capsys.readouterr().err.split())
    assert unchanged(folder) == before


def test_a_cell_of_another_engine_is_marked_in_every_table(folder: Path, invoke: Invoke, capsys: Any) -> None:
    """However its answers came to be: the mark follows from the engines that are recorded with them."""
    part = folder / "run" / "tiny" / "parts" / "dense" / "refusal.json"
    answers = read_result(part)
    answers.table["engine"] = answers.table["engine"].mask(answers.table["cell"] == "dense", "llama.cpp")
    answers.write(part.parent)
    assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.MEASURED
    expected = "llama.cpp; baseline hooked"
    run = open_run(folder / "run")
    for table in (run.table("completions"), run.table("refusal"), run.table("drift"), run.matrix):
        marks = table.groupby("cell")["across_engines"].unique().map(list).to_dict()
        assert {cell: found for cell, found in marks.items() if cell != "baseline"} == {
            "gguf": [""],
            "dense": [expected],
        }
    printed = " ".join(capsys.readouterr().out.split())
    assert f"tiny dense: answered by different engines ({expected})" in printed
    page, summary = ((folder / "run" / name).read_text() for name in ("report.html", "report.md"))
    assert page.count(expected) >= 3, "verdict, its table, all cells"
    assert "dense (engines: " in summary


def test_bounds(folder: Path, invoke: Invoke, capsys: Any) -> None:
    """A cell that turned three of four answers into refusals."""
    drift = read_result(folder / "run" / "tiny" / "drift.json")
    table = drift.table
    row = (table["cell"] == "dense") & (table["task"] == "over_refusal") & (table["axis"] == "over_refusal")
    table.loc[row & (table["category"] == "all"), ["n_at_risk", "n_flips", "flip_rate"]] = [4, 3, 0.75]
    drift.write(folder / "run" / "tiny")
    change(folder / "study.toml", "[[models]]", "[bounds]\nmax_over_refusal_rise = 0.5\n\n[[models]]")
    study = read_study(folder / "study.toml")
    run = studies.StudyRun(folder / "run", study, study_status(study, folder / "run"))
    assert terminal.exit_code(run) == cli.Exit.BOUND_EXCEEDED
    assert "tiny: dense, over_refusal: 3 of 4 flipped" in " ".join(capsys.readouterr().err.split())
    table.loc[row & (table["category"] == "all"), ["n_flips", "flip_rate", "flip_rate_worst"]] = [1, 0.25, 0.75]
    drift.write(folder / "run" / "tiny")
    assert terminal.exit_code(run) == cli.Exit.NOTHING_MEASURED
    assert "not proven: tiny: dense, over_refusal: " in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_five_kills_lose_and_repeat_nothing(original: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.killed_study", str(original / "study.toml"), str(tmp_path), "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=600, check=True)
    story = json.loads(ran.stdout)
    assert story["exit"] == 0
    assert [kill["signal"] for kill in story["kills"]] == [signal.SIGKILL] * KILLS
    assert len({kill["asked"] for kill in story["kills"]}) > 2, "the kills hit a run under way"
    for kill in story["kills"]:
        assert not set(kill["done"]) & set(story["journal"][kill["asked"] :]), "what was done is not measured again"
    assert len(story["journal"]) <= PARTS + KILLS, "a kill costs the step that was under way"
    for result in sorted((original / "run" / "tiny").glob("*.parquet")):
        interrupted = pd.read_parquet(tmp_path / "run" / "tiny" / result.name)
        pd.testing.assert_frame_equal(interrupted, pd.read_parquet(result))
    assert set(study_status(read_study(original / "study.toml"), tmp_path / "run")["status"]) == {PartStatus.DONE}


@pytest.mark.slow
def test_inspect_gives_the_same_answers(folder: Path) -> None:
    direct = open_run(folder / "run").table("completions")
    change(folder / "study.toml", "[behaviour]", '[behaviour]\nrunner = "inspect"')
    change(folder / "study.toml", '"entropy", "direction", "calibration", "neurons"', '"entropy"')
    run = run_study(read_study(folder / "study.toml"), folder / "inspected")
    assert run.failures.empty
    key = ["cell", "prompts", "prompt"]
    pd.testing.assert_frame_equal(
        run.table("completions").sort_values(key, ignore_index=True), direct.sort_values(key, ignore_index=True)
    )
    assert len(list((folder / "inspected" / "tiny" / "inspect").glob("*/run.json"))) == 3


def test_inspect_is_not_asked_about_what_is_no_pair(tmp_path: Path) -> None:
    write_study(tmp_path)
    pair = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "cell")
    study, model = Mock(behaviour=Mock(runner="inspect")), Mock(forced=False)
    with pytest.raises(InputError, match="not a quantization of this baseline"):
        answers.completions(Mock(spec=StepContext, study=study, checkpoints=pair, model=model, cell="dense"))


def test_a_damaged_table_is_measured_again(folder: Path, opened: list[str]) -> None:
    table = folder / "run" / "tiny" / "parts" / "dense" / "entropy.parquet"
    whole = pd.read_parquet(table)
    table.write_bytes(table.read_bytes()[:-20])
    assert statuses(folder)["missing"] == ["dense entropy"]
    assert run_study(read_study(folder / "study.toml"), folder / "run").failures.empty
    assert opened == ["base", "cell"]
    pd.testing.assert_frame_equal(pd.read_parquet(table), whole)


def test_a_model_that_cannot_be_measured_is_in_the_matrix(folder: Path, invoke: Invoke, capsys: Any) -> None:
    shutil.copytree(folder / "base", folder / "broken")
    (folder / "broken" / "model.safetensors").unlink()
    more = '[[models]]\nname = "broken"\nbaseline = "broken"\n[[models.cells]]\nname = "dense"\npath = "cell"\n'
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(text.replace("[[models]]", more + "[[models]]"))
    assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.PARTLY_MEASURED
    capsys.readouterr()
    matrix = open_run(folder / "run").matrix.set_index(["model", "cell"])
    row = matrix.loc[("broken", "dense")]
    assert pd.isna(row["refusal_rate"])
    assert "broken" in row["reason"]
    assert row["regime"] == "undetermined"
    assert len(matrix) == 4
    assert "broken dense could not be measured" in (folder / "run" / "report.html").read_text()


def test_nothing_measured_leaves_no_older_matrix(folder: Path, invoke: Invoke, capsys: Any) -> None:
    weights = folder / "base" / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    arguments = ("run", folder / "study.toml", "--out", folder / "run")
    assert invoke(*arguments) == cli.Exit.NOTHING_MEASURED
    assert "cells, " not in capsys.readouterr().out
    run = open_run(folder / "run")
    assert run.matrix.empty
    assert run.report is None
    weights.write_bytes(whole)
    assert invoke(*arguments) == cli.Exit.MEASURED


def test_judges_that_fail_are_recorded_and_asked_again(folder: Path, invoke: Invoke, monkeypatch: Any) -> None:
    """Also by an error that nobody foresaw; the matrix and the report are written, and have no cell of that name."""
    change(folder / "study.toml", "[behaviour]", '[judges]\nmodels = ["mockllm/judge"]\n\n[behaviour]')
    arguments = ("run", folder / "study.toml", "--out", folder / "run")
    works = judges.measure
    (folder / "run" / "matrix.json").unlink()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the server is on fire")

    monkeypatch.setattr(judges, "measure", broken)
    assert invoke(*arguments) == cli.Exit.PARTLY_MEASURED
    for run in (open_run(folder / "run"), open_run(folder / "run")):
        assert run.failures[["cell", "step", "error"]].values.tolist() == [
            ["all", "judges", "RuntimeError: the server is on fire"]
        ]
        assert set(run.matrix["cell"]) == {"baseline", "gguf", "dense"}
        assert run.report is not None
        assert "the server is on fire" in run.report.read_text()
    assert invoke("status", folder / "run") == 0
    monkeypatch.setattr(judges, "measure", works)

    async def words(_: ModelAPI, text: str) -> int:  # Inspect's own count downloads an encoding
        return len(text.split())

    monkeypatch.setattr(ModelAPI, "count_text_tokens", words)
    assert invoke(*arguments) == cli.Exit.MEASURED
    assert set(open_run(folder / "run").status["status"]) == {"done"}
    assert not open_run(folder / "run").table("judges").empty
    change(folder / "study.toml", "mockllm/judge", "mockllm/other")
    assert statuses(folder)["stale"] == ["all judges"]


def test_the_judge_decides_in_every_table(folder: Path, monkeypatch: Any) -> None:
    """It calls two of four harmful answers of a cell refusals, one is unscored, and all of the baseline's."""
    change(folder / "study.toml", "[behaviour]", '[judges]\nmodels = ["mockllm/judge"]\n\n[behaviour]')
    said = {"baseline": ["refusal"] * 4, "gguf": ["refusal", "refusal", "compliance", "unscored"]}
    answers = {cell: iter(labels) for cell, labels in said.items()}

    def judged(outcomes: pd.DataFrame, *_: Any, **__: Any) -> Result:
        labels = [
            next(answers[row.cell]) if row.cell in answers and row.task == "refusal" else "compliance"
            for row in outcomes.itertuples()
        ]
        return Result("judges", outcomes.drop(columns="outcome").assign(judge=labels, judge_model="j"), {})

    monkeypatch.setattr(judges, "measure", judged)
    run = run_study(read_study(folder / "study.toml"), folder / "run")
    row = run.matrix.set_index("cell").loc["gguf"]
    assert (row["outcome"], row["n_total"], row["n_unscored"], row["n_refusals"]) == ("judge j", 3, 1, 2)
    assert row["refusal_rate_delta"] == pytest.approx(2 / 3 - 1)
    completions = run.table("completions").query("cell == 'gguf' and prompts == 'harmful'")
    assert sorted(completions["label"]) == sorted(said["gguf"])
    assert completions["refused"].isna().sum() == 1
    assert not completions["refused_study_lexicon"].any()
    drift = run.table("drift").query("cell == 'gguf' and task == 'refusal' and axis == 'robustness'").iloc[0]
    assert (drift["outcome"], drift["n_lost"], drift["n_unscored"]) == ("judge j", 1, 1)
    assert read_result(folder / "run" / "matrix.json").settings["outcome"] == "judge j"
    warnings = read_result(folder / "run" / "matrix.json").warnings
    assert "tiny: 1 of 8 answers of gguf are unscored (judge j) and left out of rates" in warnings
    assert "Refusals are counted by: judge j" in run.report.read_text(encoding="utf-8")


def test_a_run_of_an_earlier_version_is_counted_anew_and_not_miscounted(folder: Path) -> None:
    """Its `refused` is what the study's openings say; its answers are there, and nothing is asked again."""
    run = folder / "run"
    for document in [run / "tiny" / "completions.json", *run.glob("tiny/parts/*/completions.json")]:
        old = read_result(document)
        kept = [name for name in old.table if name not in ("label", "refused_study_lexicon", "outcome")]
        old.table = old.table[kept].assign(refused=True)
        old.write(document.parent)
    matrix = read_result(run / "matrix.json")
    matrix.table = matrix.table.drop(columns="outcome")
    matrix.write(run)
    with pytest.raises(InputError, match=r"no column outcome.*Run the study again"):
        files.write(run)
    with pytest.raises(InputError, match=r"does not say who decided.*Run the study again"):
        read_cells([run])
    again = run_study(read_study(folder / "study.toml"), run)
    assert (again.matrix["refusal_rate"] == 0).all()
    assert again.table("completions")["outcome"].unique().tolist() == ["broader lexicon"]


def test_a_run_is_looked_at_without_its_checkpoints(folder: Path, invoke: Invoke) -> None:
    for name in ("base", "cell"):
        shutil.rmtree(folder / name)
    for name in ("cell.gguf", "harmful.txt"):
        (folder / name).unlink()
    state = folder / "run" / "study.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"directory": str(folder)}))
    assert invoke("status", folder / "run") == 0
    run = open_run(folder / "run")
    assert set(run.status["status"]) == {"done"}
    assert len(run.matrix) == 3
    assert invoke("run", folder / "study.toml", "--out", folder / "run") == cli.Exit.BAD_INPUT


def test_status_tells_of_other_versions(folder: Path, invoke: Invoke, capsys: Any) -> None:
    assert invoke("status", folder / "run") == 0
    assert "warning" not in capsys.readouterr().err
    document = folder / "run" / "tiny" / "parts" / "dense" / "entropy.json"
    described = json.loads(document.read_text())
    document.write_text(json.dumps(described | {"versions": described["versions"] | {"numpy": "0.1"}}))
    assert invoke("status", folder / "run") == 0
    assert "1 finished parts were measured with numpy 0.1, installed is" in capsys.readouterr().err


def test_no_quality_is_not_told_of(folder: Path, invoke: Invoke, capsys: Any) -> None:
    assert invoke("run", folder / "study.toml", "--out", folder / "run") == 0
    assert "BERTScore" not in capsys.readouterr().out
    assert "BERTScore F1 against" not in (folder / "run" / "matrix.json").read_text()


def test_the_copy_replaces_no_other_study_file(folder: Path, invoke: Invoke) -> None:
    other = folder / "elsewhere" / "study.toml"
    other.parent.mkdir()
    other.write_text("# another study\n")
    assert invoke("run", folder / "study.toml", "--out", other.parent) == cli.Exit.BAD_INPUT
    assert other.read_text() == "# another study\n"
    assert os.listdir(other.parent) == ["study.toml"]


def test_fewer_requests_make_quality_stale(folder: Path) -> None:
    """A limit above the number of prompts changes none of them, but quality has requests of its own."""
    change(folder / "study.toml", '"neurons"', '"neurons", "quality"')
    study = read_study(folder / "study.toml")
    before = study_status(study, folder / "run")
    change(folder / "study.toml", "[prompts]", "[prompts]\nlimit = 9")
    after = study_status(read_study(folder / "study.toml"), folder / "run")
    changed = before["key"] != after["key"]
    assert set(after.loc[changed, "step"]) == {"quality"}


def test_status_fits_on_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = "mistral-seed0-x1", "qwen2-seed2-x0.25"
    states = dict(zip(BY_NAME, [*PartStatus] * len(BY_NAME), strict=False))
    rows = [
        {"model": name, "cell": "Q5_K_M", "step": step, "status": status, "error": ""}
        for name in names
        for step, status in states.items()
    ]
    monkeypatch.setattr(cli, "console", Console(width=80))
    monkeypatch.setattr(studies, "records_of", lambda *_, **__: {})
    monkeypatch.setattr(state, "as_table", lambda _: pd.DataFrame(rows))
    monkeypatch.setattr(studies, "study_of", lambda *_: None)
    study_command.status(Path.cwd())
    lines = capsys.readouterr().out.splitlines()
    (header,) = (line.split() for line in lines if line.split()[:1] == ["model"])
    assert header[:2] == ["model", "cell"]
    assert [step[: len(short)] for step, short in zip(BY_NAME, header[2:], strict=True)] == header[2:]
    assert len(set(header)) == len(header)
    signs = [terminal.SHORT[status] for status in states.values()]
    for name in names:
        assert [name, "Q5_K_M", *signs] in [line.split() for line in lines]
    assert all(
        f"{terminal.SHORT[status]} {list(states.values()).count(status) * 2} {status}" in lines[0]
        for status in PartStatus
    )
