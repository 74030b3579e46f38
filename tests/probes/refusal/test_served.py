"""The engine vllm: token ids to a server of its own or to one that runs already, on a stand-in and on llama.cpp's."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pandas as pd
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.errors import InputError
from interp.generation import Answer
from interp.quantize.gguf_f16 import write_f16
from probes.harness.transport import Patience
from probes.refusal import server_process
from probes.refusal.controls import again
from probes.refusal.controls import notes as controls_notes
from probes.refusal.engines import EngineSettings
from probes.refusal.probe import build_tasks, measure
from probes.refusal.run import BehaviourRun
from probes.refusal.server_engine import ServerEngine
from probes.refusal.server_guard import PATIENCE
from probes.refusal.server_models import KEY_VARIABLE
from probes.refusal.server_process import GUARD, SERVED_AS, ServerProcess
from probes.refusal.settings import EngineName
from probes.refusal.stopped import Stopped
from probes.refusal.subjects import LocalSubject
from tests.standin_vllm import VERSION, put_on_path
from tests.writer_models import write_checkpoint

KEY = "sk-do-not-print-me"


LIMIT, MAX_NEW_TOKENS = 4, 8


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("served") / "base")


@pytest.fixture(scope="module")
def answers_file(baseline: Path) -> Path:
    """What transformers' own `generate` answers in float32 to the token ids of the requests."""
    model = AutoModelForCausalLM.from_pretrained(baseline, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(baseline)
    asked = subject(baseline, EngineName.HOOKED).read(run_in(baseline).texts()).prompts
    prompts = [*(asked or []), *PROMPTS]
    known = {}
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "pad_token_id": 0}
        tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
        known[" ".join(map(str, prompt))] = {"tokens": tokens, "text": tokenizer.decode(tokens, True)}
    file = baseline.parent / "answers.json"
    file.write_text(json.dumps(known))
    return file


@pytest.fixture
def notes(tmp_path: Path, answers_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which the stand-in says how it was called; it is `vllm` on the PATH from here on."""
    put_on_path(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("STANDIN_NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("STANDIN_ANSWERS", str(answers_file))
    server_process.version.cache_clear()
    return tmp_path / "notes"


def called(notes: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def alive(notes: Path) -> list[int]:
    return [pid for pid in (int(str(each["pid"])) for each in called(notes)) if psutil.pid_exists(pid)]


def subject(path: Path, engine: EngineName = EngineName.VLLM, server: str | None = None) -> LocalSubject:
    return LocalSubject(EngineSettings(str(path), engine), server=server)


def run_in(path: Path) -> BehaviourRun:
    return BehaviourRun(path, build_tasks(["refusal"], limit=LIMIT), MAX_NEW_TOKENS, 4, Patience(0, timeout=60))


def answers(run: BehaviourRun, asked: LocalSubject) -> pd.DataFrame:
    return run.answers("baseline", asked, asked.software)


PROMPTS = [[1, 40, 50, 60], [1, 70, 80]]


def generated(path: Path, retries: int = 0, address: str | None = None) -> list[Answer]:
    """What the engine answers to two prompts; it is stopped again."""
    engine = ServerEngine(EngineSettings(str(path), EngineName.VLLM), address, Patience(retries, 0.01, timeout=60))
    try:
        return engine.generate(PROMPTS, MAX_NEW_TOKENS)
    finally:
        engine.stop()
        with pytest.raises(Stopped):
            engine.generate(PROMPTS, MAX_NEW_TOKENS)


def test_answers_are_those_of_the_hooked_model(baseline: Path, notes: Path, tmp_path: Path) -> None:
    settings = EngineSettings(str(baseline), EngineName.VLLM, dtype="float32", data_parallel=2)
    asked = LocalSubject(settings)
    result = measure(asked, {"same": asked}, run_in(tmp_path / "served"))
    expected = answers(run_in(tmp_path / "hooked"), subject(baseline, EngineName.HOOKED))
    same = ["sample_id", "prompt_sha256", "n_prompt_tokens", "response", "n_tokens", "stop_reason", "label"]
    for _, found in result.table.groupby("cell"):
        pd.testing.assert_frame_equal(found[same].reset_index(drop=True), expected[same])
    assert set(result.table["engine"]) == {f"vllm {VERSION}"}
    described = result.settings["cells"]["same"]
    assert described["software"] == f"vllm {VERSION}"
    assert described["settings"]["data_parallel"] == 2
    assert "server" not in described
    calls = called(notes)
    assert len(calls) == 2, "one server for each cell"
    words = " ".join(map(str, calls[0]["arguments"]))  # type: ignore[call-overload]
    assert words.startswith(f"serve {baseline} --host 127.0.0.1 --port ")
    assert "--dtype float32 --data-parallel-size 2" in words
    assert not alive(notes)


def test_what_is_not_the_models_answer_is_unscored(
    baseline: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "filter")
    found = answers(run_in(tmp_path / "run"), subject(baseline))
    assert sorted(found["label"] == "unscored") == [False, False, False, True]
    assert found.loc[found["label"] == "unscored", "error"].str.contains("content_filter").all()


@pytest.mark.parametrize("trouble", ["", "text only", "first"])
def test_generate_gives_token_ids(trouble: str, baseline: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", trouble)
    found, hooked = generated(baseline, retries=1), EngineSettings(str(baseline)).open()
    expected, tokenizer = hooked.generate(PROMPTS, MAX_NEW_TOKENS), subject(baseline).settings.surroundings().tokenizer
    assert [answer.finished for answer in found] == [answer.finished for answer in expected]
    assert [tokenizer.decode(a.tokens) for a in found] == [tokenizer.decode(a.tokens, True) for a in expected]
    assert not alive(notes)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("dies", r"ended with exit status 7 .*the key is \[key\]; CUDA is nowhere"),
        ("never answers", "did not answer within 1 s"),
        ("misreads", r"read \d+ tokens, or others, of a prompt of \d+"),
        ("filter", "gave no answer of the model.*content_filter"),
        ("first", r"failed: HTTP 503: busy \(asked once\)"),
    ],
)
def test_what_goes_wrong_is_said(
    trouble: str, message: str, baseline: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", trouble)
    if trouble == "never answers":
        monkeypatch.setattr(server_process, "START", 1.0)
    with pytest.raises(InputError, match=message):
        generated(baseline)
    assert len(called(notes)) == 1, "it is started once, however many requests wait for it"
    assert not alive(notes)


def test_without_vllm(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs the program vllm, which is not on the PATH"):
        subject(baseline).read(["Hello"])


def ended(process: subprocess.Popen[bytes], number: signal.Signals, notes: Path) -> int:
    """Send a signal when a server runs, and wait until it and its server are gone."""
    deadline = time.monotonic() + 600  # of a machine that does much else
    try:
        while not called(notes) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert alive(notes)
        process.send_signal(number)
        process.wait(120)
    finally:
        process.kill()
    while alive(notes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(notes)
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_server_ends_with_whoever_started_it(
    number: signal.Signals, baseline: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "never answers")
    code = "import sys, time; from probes.refusal.server_process import ServerProcess as S; "
    code += "server = S(sys.argv[1], []); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code, str(baseline)], stderr=subprocess.DEVNULL)
    ended(process, number, notes)


@pytest.mark.slow
def test_the_command_takes_its_server_along(
    baseline: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "never answers")
    command = [sys.executable, "-m", "probes.refusal", "--baseline", str(baseline), "--quantized", f"q={baseline}"]
    options = ["--engine", "vllm", "--limit", "3", "--out", str(tmp_path / "out"), "--no-determinism", "--force"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert ended(process, signal.SIGTERM, notes) == 130


@pytest.fixture
def running(baseline: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a stand-in that somebody else has started, with a key."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setattr("probes.refusal.server_process.secrets.token_hex", lambda _: KEY)
    server = ServerProcess(str(baseline), [])
    server.wait(Event())
    yield server.url
    server.stop()


def test_a_server_that_runs_already_is_taken(running: str, baseline: Path, tmp_path: Path) -> None:
    asked = subject(baseline, server=running)
    run = run_in(tmp_path / "run")
    reading = asked.read(run.texts())
    assert reading.engine == f"vllm {VERSION}"
    assert any(f"cannot be known (it declares root {baseline})" in warning for warning in reading.warnings)
    found = answers(run, asked)
    expected = answers(run_in(tmp_path / "hooked"), subject(baseline, EngineName.HOOKED))
    assert found["response"].tolist() == expected["response"].tolist()
    for file in filter(Path.is_file, (tmp_path / "run").rglob("*")):
        assert KEY.encode() not in file.read_bytes(), file


@pytest.mark.skipif(shutil.which("llama-server") is None, reason="needs llama.cpp's own server on the PATH")
def test_llama_cpps_server_reads_the_token_ids(baseline: Path, tmp_path: Path) -> None:
    """Its answers are those of llama.cpp in this process, which reads the same token ids."""
    file = tmp_path / "f16.gguf"
    write_f16(baseline, file)
    port = server_process._free_port()
    command = ["llama-server", "--model", str(file), "--port", str(port), "--threads", "1", "--no-webui"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asked = replace(subject(file), server=f"http://127.0.0.1:{port}/v1")
        asked = replace(asked, settings=replace(asked.settings, like=str(baseline)))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                software = asked.software
                break
            except InputError:
                time.sleep(0.2)
        found = answers(run_in(tmp_path / "served"), asked)
    finally:
        server.kill()
        server.wait()
    assert software.startswith("llamacpp ")
    local = replace(asked, settings=replace(asked.settings, engine=EngineName.LLAMA_CPP), server=None)
    expected = answers(run_in(tmp_path / "local"), local)
    for column in ("prompt_sha256", "n_prompt_tokens", "response", "n_tokens", "stop_reason"):
        assert found[column].tolist() == expected[column].tolist(), column


def test_the_guard_ends_its_command_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-I", str(GUARD), "sleep", "600"], stdin=subprocess.PIPE)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    process.wait(60)
    assert time.monotonic() - started < PATIENCE / 2


def test_a_server_makes_its_own_batches(baseline: Path) -> None:
    served, hooked = subject(baseline), subject(baseline, EngineName.HOOKED)
    assert again(served) == served
    assert again(hooked).batch_size < hooked.batch_size  # type: ignore[union-attr]
    repeat = {"n": 4, "n_flips": 0, "n_responses_changed": 1}
    told = [controls_notes({"determinism": repeat | {"conditions": c}})[0] for c in ({}, {"batch_size": 10})]
    assert ["another batch size" in each for each in told] == [False, True]


def test_which_of_a_servers_models_answers_is_part_of_the_run(running: str, baseline: Path) -> None:
    plain, named = (subject(baseline, server=address).describe() for address in (running, f"{running}#{SERVED_AS}"))
    assert named == plain | {"served_as": SERVED_AS}
