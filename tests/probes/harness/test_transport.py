"""A server on loopback that misbehaves, asked with patience."""

from __future__ import annotations

import base64
import gzip
import json
import os
import time
from typing import Any

import anyio
import pytest
from inspect_ai.model import ChatMessageUser, GenerateConfig, ModelOutput, get_model

from interp.errors import InputError
from probes.harness.transport import UNSCORED, Patience, ServerFailure, fetch, past_proxies, persist, read_models
from tests.judge_server import Behaviour, Server, drip, repeat_the_key, say, serving, sleep, status
from tests.probes.harness.test_server_replies import CALL, reply

KEY = 's3cret/key+of "mine"'
QUICK = Patience(retries=2, backoff=0.01, timeout=20)


def ask(server: Server, patience: Patience = QUICK) -> ModelOutput:
    model = persist(get_model("openai-api/test/m", base_url=server.url, api_key="none", memoize=False), patience)

    async def asked() -> ModelOutput:
        return await model.generate([ChatMessageUser(content="Q")], config=GenerateConfig(max_retries=0, temperature=0))

    return anyio.run(asked)


@pytest.mark.parametrize(
    "failure",
    [
        status(500, "<html><title>500</title></html>", Content_Type="text/html"),
        status(503),
        status(429, "{}", Retry_After="0"),
        status(408),
        status(200, "<html>", Content_Type="text/html"),
        status(200, reply({"content": "Fine."})[:-5]),
        status(200, b"\xff\xfe\x00"),
        status(200, b"not gzip", Content_Encoding="gzip"),
        status(200, "", Content_Length="10"),
        status(200, '{"choices": []}'),
        lambda handler, request: None,
    ],
)
def test_a_failure_is_tried_again(failure: Behaviour) -> None:
    with serving(failure, failure, say("Fine.")) as server:
        assert ask(server).completion == "Fine."
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("behaviour", "asked", "words"),
    [
        (status(500, '{"error": {"message": "out of memory"}}'), 3, r"HTTP 500: out of memory \(asked 3 times\)"),
        (status(502, "<html><title>Bad Gateway</title>"), 3, "HTTP 502: a page of HTML, “Bad Gateway”"),
        (status(200, "<html>", Content_Type="text/html"), 3, "cannot be read: it is a page of HTML"),
        (status(200, '{"choices": []}'), 3, "cannot be read: its list of choices is empty"),
        (status(400, '{"detail": "no such field: seed"}'), 1, r"HTTP 400: no such field: seed \(asked once\)"),
        (status(401, '{"error": "who are you?"}'), 2, "HTTP 401: who are you?"),
        (status(404, "gone"), 1, "HTTP 404: gone"),
        (status(422, '{"message": 7}'), 1, "HTTP 422: 7"),
        (status(302, "", Location="http://elsewhere/v1"), 1, "redirects to http://elsewhere/v1: give that address"),
        (lambda handler, request: None, 3, "the connection failed: "),
    ],
)
def test_a_failure_that_stays_is_told_in_words(behaviour: Behaviour, asked: int, words: str) -> None:
    with serving(behaviour) as server, pytest.raises(InputError, match=words) as error:
        ask(server)
    assert len(server.requests) <= asked  # after a 401 the provider may look for another key once
    assert not [odd for odd in ("Future", "RetryError", "Error(", "Traceback") if odd in str(error.value)]


@pytest.mark.parametrize("behaviour", [sleep(30), drip])
def test_an_answer_has_a_limit_of_time(behaviour: Behaviour) -> None:
    started = time.monotonic()
    with serving(behaviour) as server:
        with pytest.raises(InputError, match=r"no answer within 0\.5 s \(asked 2 times\)"):
            ask(server, Patience(retries=1, backoff=0.01, timeout=0.5))
        assert time.monotonic() - started < 25  # the server would take 30


def test_a_server_that_nobody_started() -> None:
    server = Server()
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/v1 failed: the connection failed: .*asked 3 times"):
        ask(server)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (status(400, '{"error": {"code": "content_filter", "message": "filtered"}}'), "content_filter: filtered"),
        (status(400, '{"error": {"code": "invalid_prompt", "message": "no"}}'), "invalid_prompt: no"),
        (status(400, '{"error": {"code": "context_length_exceeded"}}'), "too long"),
        (status(403, '{"error": {"code": "content_policy_violation"}}'), "content_policy_violation"),
        (status(413, ""), "too long"),
        (status(200, reply({"content": "Sure"}, "content_filter")), "filter ended the answer"),
        (status(200, reply({"content": None})), "no text"),
        (status(200, reply({"content": None, "tool_calls": CALL}, "tool_calls")), "call of a tool"),
    ],
)
def test_the_servers_word_is_no_answer_and_not_asked_for_again(behaviour: Behaviour, reason: str) -> None:
    with serving(behaviour) as server:
        output = ask(server)
        assert len(server.requests) == 1
    assert output.completion == ""
    assert output.metadata is not None
    assert reason in output.metadata[UNSCORED]


def test_any_content_type_and_encoding() -> None:
    text = reply({"content": "Fine."})
    for behaviour in (
        status(200, text, Content_Type="text/plain"),
        status(200, "\ufeff" + text, Content_Type="text/html; charset=nonsense"),
        status(200, gzip.compress(text.encode()), Content_Encoding="gzip"),
    ):
        with serving(behaviour) as server:
            assert ask(server).completion == "Fine."


class TestKeys:
    @pytest.fixture(autouse=True)
    def known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ODD_BASE_URL", "http://me:pass%21word@127.0.0.1/v1?api_key=abc%2Fdef&plain=visible")
        monkeypatch.setenv("SOME_APIKEY", KEY)

    @pytest.mark.parametrize(
        "said",
        [
            KEY,
            "pass!word",
            "pass%21word",
            "abc/def",
            base64.b64encode(KEY.encode()).decode(),
            base64.b64encode(b"me:pass!word").decode(),
            "https://user:letmein@host/v1?token=letmein",
            "Authorization: Bearer letmein-letmein",
            "sk-proj-letmein0123456789",
        ],
    )
    def test_no_message_repeats_one(self, said: str) -> None:
        for code in (400, 500):
            body = json.dumps({"error": {"message": f"bad {said} visible"}})
            with serving(status(code, body)) as server, pytest.raises(InputError, match="visible") as error:
                ask(server)
            shown = str(error.value)
            assert "[key]" in shown
            assert said not in shown
            assert "letmein" not in shown

    def test_no_answer_repeats_one(self) -> None:
        answer = f"It is {KEY}, and see http://a:b@c/?password=hunter2, the user's own example."
        with serving(status(200, reply({"content": answer}))) as server:
            assert ask(server).completion == answer.replace(KEY, "[key]")

    def test_the_header_that_was_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TEST_API_KEY", "letmein-please")
        with serving(repeat_the_key(400)) as server:
            model = persist(get_model("openai-api/test/m", base_url=server.url, memoize=False), QUICK)
            with pytest.raises(InputError) as error:
                anyio.run(model.generate, "Q")
        assert "letmein" not in str(error.value)


class TestFetch:
    def test_models(self) -> None:
        assert list(read_models('{"data": [{"id": "b"}, {"id": "a", "owned_by": null}]}')) == ["b", "a"]
        assert list(read_models('[{"id": "b"}]')) == ["b"]

    @pytest.mark.parametrize(
        "text", ["", "<html>", "{}", "[]7", '{"data": {}}', '{"data": [{}]}', '{"data": [{"id": 3}]}']
    )
    def test_no_models(self, text: str) -> None:
        with pytest.raises(ServerFailure):
            read_models(text)

    @pytest.mark.parametrize(
        "address",
        ["http://127.0.0.1:9/", "ftp://127.0.0.1/", "http://", "http://[", "http://a\nb/", "http://x.invalid/"],
    )
    def test_nobody_there(self, address: str) -> None:
        with pytest.raises(ServerFailure, match="the connection failed"):
            fetch(address, "none", 5)

    def test_a_key_that_cannot_be_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for key in ("new\nline-of-key", "ключ-ключ"):
            monkeypatch.setenv("SOME_API_KEY", key)
            with pytest.raises(ServerFailure) as error:
                fetch("http://127.0.0.1:9/", key)
            assert "line-of-key" not in str(error.value)


def test_the_settings_of_a_judge_and_a_run() -> None:
    from probes.judges.settings import Patience as OfJudges

    patience: Any = OfJudges(1, 2.0, 3, 4)
    assert (patience.retries, patience.backoff, patience.timeout, patience.connections) == (1, 2.0, 3, 4)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_not_reached_through_a_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "intra.example")
    with serving(say("Fine.")) as server:
        past_proxies(server.url)
        assert ask(server).completion == "Fine."
        with pytest.raises(ServerFailure, match="HTTP"):  # the stand-in has no list: it was reached
            fetch(f"{server.url.replace('127.0.0.1', host)}/nothing", KEY)
    past_proxies("http://elsewhere.example/v1")
    assert os.environ["NO_PROXY"].split(",")[0] == "intra.example"
    assert "elsewhere" not in os.environ["NO_PROXY"]
