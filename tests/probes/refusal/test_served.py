"""The engine vllm: token ids to a server of its own or to one that runs already, on a stand-in and on llama.cpp's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pytest

from interp.errors import InputError
from interp.quantize.gguf_f16 import write_f16
from probes.harness.transport import Patience
from probes.refusal import server_process
from probes.refusal.engines import EngineSettings
from probes.refusal.probe import build_tasks, measure
from probes.refusal.run import BehaviourRun
from probes.refusal.server_engine import ServerEngine
from probes.refusal.server_models import KEY_VARIABLE
from probes.refusal.settings import EngineName
from probes.refusal.subjects import LocalSubject
from tests.standin_vllm import VERSION, put_on_path
from tests.writer_models import write_checkpoint

KEY = "sk-do-not-print-me"


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("served") / "base")


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which the stand-in says how it was called; it is `vllm` on the PATH from here on."""
    put_on_path(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("STANDIN_NOTES", str(tmp_path / "notes"))
    server_process.version.cache_clear()
    return tmp_path / "notes"


def called(notes: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def alive(notes: Path) -> list[int]:
    return [pid for pid in (int(str(each["pid"])) for each in called(notes)) if psutil.pid_exists(pid)]


def subject(path: Path, engine: EngineName = EngineName.VLLM, server: str | None = None) -> LocalSubject:
    return LocalSubject(EngineSettings(str(path), engine), server=server)


def run_in(path: Path, limit: int = 4, retries: int = 0) -> BehaviourRun:
    return BehaviourRun(path, build_tasks(["refusal"], limit=limit), 8, 4, Patience(retries, backoff=0.01, timeout=60))


def answers(run: BehaviourRun, asked: LocalSubject) -> pd.DataFrame:
    return run.answers("baseline", asked, asked.software)


@pytest.mark.parametrize("trouble", ["", "text only", "first"])
def test_answers_are_those_of_the_hooked_model(
    trouble: str, baseline: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", trouble)
    expected = answers(run_in(tmp_path / "hooked"), subject(baseline, EngineName.HOOKED))
    found = answers(run_in(tmp_path / "served", retries=1), subject(baseline))
    same = ["sample_id", "prompt_sha256", "n_prompt_tokens", "n_tokens", "stop_reason", "label"]
    pd.testing.assert_frame_equal(found[same], expected[same])
    if trouble != "text only":  # a server leaves out special tokens by its own rules
        pd.testing.assert_series_equal(found["response"], expected["response"])
    assert set(found["engine"]) == {f"vllm {VERSION}"}
    assert not alive(notes)


def test_how_it_is_started(baseline: Path, notes: Path, tmp_path: Path) -> None:
    settings = EngineSettings(str(baseline), EngineName.VLLM, dtype="float32", data_parallel=2)
    asked = LocalSubject(settings)
    result = measure(asked, {"same": replace(asked)}, run_in(tmp_path / "run"), repeat=None)
    calls = called(notes)
    assert len(calls) == 2, "one server for each cell"
    words = " ".join(map(str, calls[0]["arguments"]))  # type: ignore[call-overload]
    assert words.startswith(f"serve {baseline} --host 127.0.0.1 --port ")
    assert "--dtype float32 --data-parallel-size 2" in words
    assert (
        result.table.query("cell == 'same'")["response"].tolist()
        == result.table.query("cell == 'baseline'")["response"].tolist()
    )
    described = result.settings["cells"]["same"]
    assert described["software"] == f"vllm {VERSION}"
    assert described["settings"]["data_parallel"] == 2
    assert "server" not in described


def test_one_that_does_not_start_says_why(
    baseline: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "dies")
    with pytest.raises(InputError, match=r"ended with exit status 7 .*CUDA is nowhere") as error:
        answers(run_in(tmp_path / "run"), subject(baseline))
    assert "the key is [key]" in str(error.value)
    assert len(called(notes)) == 1, "it is started once, however many requests wait for it"


def test_one_that_never_answers(baseline: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "never answers")
    monkeypatch.setattr("probes.refusal.server_process.ServerProcess.wait.__defaults__", (1.0,))
    with pytest.raises(InputError, match="did not answer within 1 s"):
        answers(run_in(tmp_path / "run"), subject(baseline))
    assert not alive(notes)


def test_what_is_not_the_models_answer_is_unscored(
    baseline: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "filter")
    found = answers(run_in(tmp_path / "run"), subject(baseline))
    assert sorted(found["label"] == "unscored") == [False, False, False, True]
    assert found.loc[found["label"] == "unscored", "error"].str.contains("content_filter").all()


def test_a_server_that_reads_other_prompts_is_refused(
    baseline: Path, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", "misreads")
    with pytest.raises(InputError, match=r"read \d+ tokens, or others, of a prompt of \d+"):
        answers(run_in(tmp_path / "run"), subject(baseline))


def test_without_vllm(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs the program vllm, which is not on the PATH"):
        subject(baseline).read(["Hello"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_ends_with_whoever_started_it(
    number: signal.Signals, baseline: Path, notes: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "probes.refusal", "--baseline", str(baseline), "--quantized", f"q={baseline}"]
    options = ["--engine", "vllm", "--limit", "3", "--out", str(tmp_path / "out"), "--no-determinism", "--force"]
    environment = os.environ | {"STANDIN": "never answers"}
    process = subprocess.Popen(
        [*command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    while not called(notes) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(notes)
    process.send_signal(number)
    process.wait(60)
    while alive(notes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(notes)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)


@pytest.fixture
def running(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a stand-in that somebody else has started, with a key."""
    put_on_path(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    settings = EngineSettings(str(baseline), EngineName.VLLM)
    engine = ServerEngine(settings)
    monkeypatch.setattr("probes.refusal.server_process.secrets.token_hex", lambda _: KEY)
    place = engine._place()
    yield place.url
    engine.stop()


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


def test_generate_gives_token_ids(running: str, baseline: Path) -> None:
    engine = ServerEngine(EngineSettings(str(baseline), EngineName.VLLM), running)
    hooked = EngineSettings(str(baseline)).open()
    prompts = [[1, 40, 50, 60], [1, 70, 80]]
    found, expected = engine.generate(prompts, 6), hooked.generate(prompts, 6)
    assert [answer.finished for answer in found] == [answer.finished for answer in expected]
    decode = engine.tokenizer.decode
    assert [decode(a.tokens) for a in found] == [decode(a.tokens, skip_special_tokens=True) for a in expected]
    with pytest.raises(InputError, match="does not give its logits"):
        engine.last_logits(prompts)


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
