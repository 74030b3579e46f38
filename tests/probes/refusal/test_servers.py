"""OpenAI-compatible servers: a real one (llama-cpp-python) on loopback, and one that misbehaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp.errors import InputError
from interp.quantize.gguf_f16 import write_f16
from probes import refusal
from probes.harness.transport import Patience
from probes.refusal import __main__ as refusal_command
from probes.refusal.probe import build_tasks, measure
from probes.refusal.run import BehaviourRun
from probes.refusal.server_models import KEY_VARIABLE
from probes.refusal.subjects import ServerSubject
from tests.writer_models import write_checkpoint

KEY = "sk-do-not-print-me"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_in(
    path: Path, limit: int = 6, retries: int = 0, connections: int = 2, timeout: int | float = 60
) -> BehaviourRun:
    patience = Patience(retries, backoff=0.01, timeout=timeout)
    return BehaviourRun(path, build_tasks(["refusal"], limit=limit), 8, connections, patience)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp.server")
    directory = tmp_path_factory.mktemp("server")
    write_f16(write_checkpoint("llama", directory / "base"), directory / "f16.gguf")
    return directory / "f16.gguf"


class TestRealServer:
    @contextmanager
    def serving(self, gguf: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
        settings = ["--model", str(gguf), "--model_alias", "tiny", "--n_ctx", "0", "--n_threads", "1"]
        command = [sys.executable, "-m", "llama_cpp.server", *settings, "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.wait_for(port, server)
            yield server
        finally:
            server.kill()
            server.wait()

    def wait_for(self, port: int, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail("the server does not start")

    def test_answers_are_those_of_the_server(self, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        port = free_port()
        with self.serving(gguf, port):
            url = f"http://127.0.0.1:{port}/v1"
            subject = ServerSubject.at(url)
            assert subject.name == "tiny"
            table = measure(subject, {"q": ServerSubject.at(f"{url}#tiny")}, run_in(tmp_path)).table
            row = table.iloc[0]
            body = {
                "model": "tiny", "temperature": 0, "max_tokens": 8, "seed": 0,
                "messages": [{"role": "user", "content": row["prompt"]}],
            }  # fmt: skip
            request = urllib.request.Request(
                f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            expected = json.load(urllib.request.urlopen(request))
            with pytest.raises(InputError, match=r"no model 'other'.*one of tiny"):
                ServerSubject.at(f"{url}#other")
        assert row["response"] == expected["choices"][0]["message"]["content"]
        assert row["n_prompt_tokens"] == expected["usage"]["prompt_tokens"]
        assert set(table["engine"]) == {"server (me)"}
        assert KEY not in "".join(table.astype(str).to_numpy().ravel())
        for file in filter(Path.is_file, tmp_path.rglob("*")):
            assert KEY.encode() not in content(file), file

    @pytest.mark.slow
    def test_a_server_dies_and_comes_back(self, gguf: Path, tmp_path: Path) -> None:
        port = free_port()
        run = run_in(tmp_path, limit=40, connections=1)
        with self.serving(gguf, port) as server:
            subject = ServerSubject.at(f"http://127.0.0.1:{port}/v1")
            killer = threading.Thread(target=self.kill_under_way, args=(server, tmp_path))
            killer.start()
            with pytest.raises(InputError, match=r"(?s)The task refusal .* stopped.*run the same command to go on"):
                measure(subject, {"q": subject}, run)
            killer.join()
        before = answered(tmp_path / "cells" / "baseline")
        assert 0 < len(before) < 40
        with self.serving(gguf, port):
            table = measure(subject, {"q": subject}, run).table
        assert table.groupby("cell").size().to_dict() == {"baseline": 40, "q": 40}
        assert before <= answered(tmp_path / "cells" / "baseline")

    def kill_under_way(self, server: subprocess.Popen[bytes], folder: Path) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not answered(folder / "cells" / "baseline"):
            time.sleep(0.05)
        server.send_signal(signal.SIGKILL)


def answered(cell: Path) -> set[str]:
    """`id uuid` of the samples in the logs of a cell."""
    from inspect_ai.log import read_eval_log_sample_summaries

    found = set()
    for log in (cell / "logs").glob("*.eval"):
        with suppress(OSError, ValueError):  # being written
            summaries = read_eval_log_sample_summaries(str(log))
            found |= {
                f"{summary.id} {summary.uuid}" for summary in summaries if summary.completed and not summary.error
            }
    return found


def content(file: Path) -> bytes:
    if file.suffix != ".eval":
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


class TestMisbehavingServer:
    @contextmanager
    def serving(
        self, answer: Callable[[], tuple[int, bytes]], props: dict[str, Any] | None = None, **declared: Any
    ) -> Iterator[str]:
        sent = self.sent = list[dict[str, Any]]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/props":
                    return self.send(404 if props is None else 200, json.dumps(props).encode())
                self.send(200, json.dumps({"object": "list", "data": [model]}).encode())

            def do_POST(self) -> None:
                sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send(*answer())

            def send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        model = {"id": "m", "object": "model", "owned_by": "nobody", "created": time.time_ns(), **declared}
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()

    def completion(self, text: str | None, **more: Any) -> bytes:
        message = {"role": "assistant", "content": text} | more
        return json.dumps(
            {
                "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            }
        ).encode()  # fmt: skip

    @pytest.mark.parametrize(
        "text", ["", "x" * 100_000, "\x00\x1b[31m\u202e<script>[bold]</script>\x07", "I can't help with that."]
    )
    def test_any_text_reaches_the_table(self, text: str, tmp_path: Path) -> None:
        with self.serving(lambda: (200, self.completion(text))) as url:
            subject = ServerSubject.at(url)
            result = measure(subject, {"q": subject}, run_in(tmp_path, limit=2))
        assert list(result.table["response"]) == [text] * 4
        assert (result.table["label"] == "refusal").all() == text.startswith("I can't")
        result.write(tmp_path)
        assert json.loads(result.to_json())["rows"][0]["response"] == text

    def test_a_system_prompt_is_sent_and_kept_with_the_run(self, tmp_path: Path) -> None:
        with self.serving(lambda: (200, self.completion("Fine."))) as url:
            subjects = [ServerSubject.at(url, system) for system in ("auto", "Be terse.")]
            for subject in subjects:
                measure(subject, {"q": subject}, run_in(tmp_path / subject.system, limit=1))
            with pytest.raises(InputError, match=r"other settings \(baseline, q differ"):
                measure(subjects[1], {"q": subjects[1]}, run_in(tmp_path / "auto", limit=1))
            with pytest.raises(InputError, match="renders prompts itself"):
                ServerSubject.at(url, "none")
        roles = [[m["role"] for m in sent["messages"]] for sent in self.sent]
        assert roles == [["user"]] * 2 + [["system", "user"]] * 2
        assert self.sent[-1]["messages"][0]["content"] == "Be terse."
        assert "system" not in subjects[0].describe()

    def test_a_thought_that_the_server_leaves_in_is_not_the_answer(self, tmp_path: Path) -> None:
        text = "I could say: Sure, here it is.</think>\n\nI can't help with that."
        with self.serving(lambda: (200, self.completion(text))) as url:
            subject = ServerSubject.at(url)
            table = measure(subject, {"q": subject}, run_in(tmp_path, limit=1)).table
        assert list(table["response"]) == ["I can't help with that."] * 2
        assert list(table["thinking"]) == ["I could say: Sure, here it is."] * 2
        assert list(table["label"]) == ["refusal"] * 2
        assert list(table["score"]) == [1.0] * 2

    def test_answers_that_are_not_english_are_counted_and_warned_of(self, tmp_path: Path) -> None:
        with self.serving(lambda: (200, self.completion("Lo siento, no puedo ayudar con eso."))) as url:
            subject = ServerSubject.at(url)
            result = measure(subject, {"q": subject}, run_in(tmp_path, limit=2))
        assert result.settings["not_english"] == {name: {"n": 2, "not_english": 2} for name in ("baseline", "q")}
        assert any(w.startswith("q: 2 of 2 answers (100.0 %) are not English") for w in result.warnings)

    @pytest.mark.parametrize(
        ("status", "body"),
        [(200, b"{not json"), (200, b'"a string"'), (200, b"{}"), (500, b"{}"), (401, b"{}"), (404, b"{}")],
    )
    def test_errors_stop_the_run_resumably(self, status: int, body: bytes, tmp_path: Path) -> None:
        replies = [(200, self.completion("Fine.")), (status, body)]
        with self.serving(lambda: replies.pop(0) if len(replies) > 1 else replies[0]) as url:
            subject = ServerSubject.at(url)
            with pytest.raises(InputError, match="What was finished is kept") as error:
                measure(subject, {"q": subject}, run_in(tmp_path, limit=3, connections=1))
            assert not re.search(r"Future|RetryError|Error\(|Traceback", str(error.value))
            replies[:] = [(200, self.completion("Later."))]
            table = measure(subject, {"q": subject}, run_in(tmp_path, limit=3, connections=1)).table
        baseline = table[table["cell"] == "baseline"]
        assert sorted(baseline["response"]) == ["Fine.", "Later.", "Later."]

    def test_what_is_not_the_models_answer_is_unscored_and_counted(self, tmp_path: Path) -> None:
        called = [{"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}]
        filtered = json.dumps({"error": {"code": "content_filter", "message": "I can't help with that."}}).encode()
        replies = [
            (400, filtered),
            (200, self.completion(None, tool_calls=called)),
            (200, self.completion("I can't help with that.")),
            (400, filtered),
        ]
        asked = []

        def answer() -> tuple[int, bytes]:
            asked.append(1)
            return replies[len(asked) - 1] if len(asked) <= len(replies) else (200, self.completion("Sure."))

        with self.serving(answer) as url:
            subject = ServerSubject.at(url)
            result = measure(subject, {"q": subject}, run_in(tmp_path, limit=4, connections=1))
        assert len(asked) == 8, "each request is asked once"
        baseline = result.table[result.table["cell"] == "baseline"]
        assert sorted(baseline["label"]) == ["refusal", "unscored", "unscored", "unscored"]
        unscored = baseline[baseline["label"] == "unscored"]
        assert unscored["response"].isna().all()
        assert unscored["score"].isna().all()
        assert unscored["error"].str.contains("content_filter|call of a tool").all()
        assert (result.table.loc[result.table["cell"] == "q", "error"] == "").all()
        assert [said for said in result.warnings if "have no label" in said] == [
            "baseline, refusal: 3 of 4 answers are not the model's and have no label, most often because the server "
            "did not let the model answer (HTTP 400 content_filter: I can't help with that.)"
        ]
        rates = refusal.rates(result.table).set_index("cell")
        assert (rates.loc["baseline", "n"], rates.loc["baseline", "refusal_rate"]) == (1, 1.0)

    def test_what_the_server_declares_tells_its_models_apart(self, tmp_path: Path) -> None:
        """A server comes back at the same address and name: with the same model the run goes on, else it does not."""
        fine = (200, self.completion("Fine."))

        def ask(props: dict[str, Any] | None, **declared: Any) -> list[str]:
            with self.serving(lambda: fine, props, **declared) as url:
                subject = ServerSubject.at(url)
                described = subject.describe() | {"url": "the same"}  # the port is another one at each start
                run = run_in(tmp_path, limit=1)
                run.claim(run.describe() | {"cells": {"baseline": described}})
                return subject.read([]).warnings

        meta = {"n_params": 7}
        warnings = ask({"model_path": "a.gguf", "chat_template": "x", "total_slots": 1}, meta=meta)
        assert any("cannot be known (it declares meta, model_path, chat_template_sha256)" in said for said in warnings)
        ask({"model_path": "a.gguf", "chat_template": "x", "total_slots": 2}, meta=meta)
        for props, other in (("b.gguf", meta), ("a.gguf", {"n_params": 8})):
            with pytest.raises(InputError, match=r"other settings .baseline differ"):
                ask({"model_path": props, "chat_template": "x"}, meta=other)

    def test_a_server_that_declares_nothing(self) -> None:
        with self.serving(lambda: (200, b"")) as url:
            assert any(
                "cannot be known (it declares nothing more)" in s for s in ServerSubject.at(url).read([]).warnings
            )

    def test_a_failing_request_is_tried_again(self, tmp_path: Path) -> None:
        replies = [(503, b"{}"), (200, self.completion("Fine."))]
        with self.serving(lambda: replies.pop(0) if len(replies) > 1 else replies[0]) as url:
            subject = ServerSubject.at(url)
            table = measure(subject, {"q": subject}, run_in(tmp_path, limit=1, retries=2)).table
        assert list(table["response"]) == ["Fine."] * 2

    @pytest.mark.parametrize("address", ["http://me:s3cret@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=s3cret#m"])
    def test_a_key_in_an_address_is_refused_and_not_repeated(self, address: str) -> None:
        with pytest.raises(InputError, match=KEY_VARIABLE) as error:
            ServerSubject.at(address)
        assert "s3cret" not in str(error.value)

    def test_a_key_that_the_server_repeats_is_in_no_file_and_no_message(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEY_VARIABLE, "s3cret-key")
        body = json.dumps({"error": {"message": "bad Bearer s3cret-key"}}).encode()
        with self.serving(lambda: (400, body)) as url:
            subject = ServerSubject.at(url)
            with pytest.raises(InputError, match=r"bad Bearer \[key\]") as error:
                measure(subject, {"q": subject}, run_in(tmp_path, limit=2))
        assert "s3cret" not in str(error.value)
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert any(file.suffix == ".eval" for file in files)
        assert not [file for file in files if b"s3cret" in content(file)]

    def test_a_key_that_is_not_accepted(self) -> None:
        with self.serving(lambda: (200, b"")) as url, pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                BaseHTTPRequestHandler, "send_response", lambda s, _: BaseHTTPRequestHandler.send_response_only(s, 401)
            )
            with pytest.raises(InputError, match=f"does not accept the key.*{KEY_VARIABLE}"):
                ServerSubject.at(url)


def test_an_unreachable_server_ends_with_exit_code_2(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    command = [sys.executable, "-m", "probes.refusal", "--baseline", url, "--quantized", f"q={url}"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, env=os.environ | {"COLUMNS": "500"}
    )
    assert ran.returncode == 2
    assert re.search(r"error: No OpenAI-compatible server answers at .* run the same command to go on", ran.stderr)
    assert "Traceback" not in ran.stderr


def test_two_cells_of_one_name(tmp_path: Path) -> None:
    arguments = ["--baseline", "a", "--quantized", "q=b", "--quantized", "q=c", "--out", str(tmp_path)]
    result = CliRunner().invoke(refusal_command.app, arguments)
    assert isinstance(result.exception, InputError)
