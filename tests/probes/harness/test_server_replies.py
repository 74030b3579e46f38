"""What servers send, as their documentation shows it: an answer of the model, an unreadable reply, or neither."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.harness.server_replies import (
    NotTheModelsWord,
    UnreadableReply,
    error_body,
    error_message,
    read_completion,
    refused_because,
)


def reply(message: Any, reason: Any = "stop", **more: Any) -> str:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]} | more)


CALL = [{"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": "Fine."}, "Fine."),
        ({"content": ""}, ""),
        ({"content": "\u2028 \u0000"}, "\u2028 \u0000"),
        ({"content": [{"type": "text", "text": "Fi"}, {"type": "text", "text": "ne."}]}, "Fine."),
        ({"content": None, "refusal": "I'm sorry, I can't."}, "I'm sorry, I can't."),
        ({"content": [{"type": "refusal", "refusal": "I can't."}]}, "I can't."),
        ({"content": "Fine.", "tool_calls": CALL}, "Fine."),
        ({"content": "Fine.", "tool_calls": []}, "Fine."),
        ({"content": "Fine.", "tool_calls": None, "function_call": None, "refusal": None, "audio": None}, "Fine."),
    ],
)
def test_the_models_words(message: dict[str, Any], content: str) -> None:
    found = read_completion(reply({"role": "assistant"} | message)).choices[0].message
    assert found.content == content
    assert not found.tool_calls


def test_thinking_is_kept_apart() -> None:
    for field in ("reasoning_content", "reasoning"):
        message: Any = read_completion(reply({"content": None, field: "Hm."}, "length")).choices[0].message
        assert (message.content, message.reasoning_content) == ("", "Hm.")
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Fine."}]
    message = read_completion(reply({"content": parts})).choices[0].message
    assert (message.content, message.reasoning_content) == ("Fine.", "Hm.")


def test_numbers_of_tokens() -> None:
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": "x"},
    }
    found = read_completion(reply({"content": "Fine."}, usage=usage)).usage
    assert found is not None
    assert (found.prompt_tokens, found.completion_tokens, found.prompt_tokens_details) == (3, 4, None)
    for broken in (
        None,
        [],
        {},
        {"prompt_tokens": "3", "completion_tokens": 4},
        {"prompt_tokens": -1, "completion_tokens": 1},
    ):
        assert read_completion(reply({"content": "Fine."}, usage=broken)).usage is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (reply({"content": "Sure, first"}, "content_filter"), "filter ended the answer"),
        (reply({"content": "Sure, first"}, "RECITATION"), "filter ended the answer"),
        (reply({"content": ""}, "refusal"), "filter ended the answer"),
        (reply({"content": None}, "SAFETY"), "filter ended the answer"),
        (reply({"content": None}), "no text"),
        (reply({"role": "assistant"}, "length"), "no text"),
        (reply({"content": None, "tool_calls": CALL}, "tool_calls"), r"call of a tool \(search\)"),
        (
            reply({"content": "", "function_call": {"name": "f", "arguments": ""}}, "function_call"),
            r"call of a tool \(f\)",
        ),
        (reply({"content": None, "tool_calls": "x"}), r"call of a tool \(unnamed\)"),
        ('{"error": {"code": "content_filter", "message": "no"}}', r"HTTP 400 content_filter: no"),
        ('{"error": {"code": 400, "message": "This model\'s maximum context length is 8 tokens"}}', "too long"),
        ('{"choices": [{"error": {"code": "content_filter"}}]}', "content_filter"),
    ],
)
def test_what_is_not_the_models_word(text: str, reason: str) -> None:
    with pytest.raises(NotTheModelsWord, match=reason):
        read_completion(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("{not json", "not valid JSON"),
        (reply({"content": "Fine."})[:-9], "not valid JSON"),
        ('"a string"', "JSON str"),
        ("[]", "JSON list"),
        ("{}", "no choices"),
        ('{"choices": null}', "no choices"),
        ('{"choices": []}', "list of choices is empty"),
        ('{"choices": [7]}', "not an object"),
        ('{"choices": [{"text": "Fine.", "finish_reason": "stop"}]}', "no message"),
        (reply("Fine."), "no message"),
        (reply({"content": 7}), "content is a JSON int"),
        (reply({"content": {"text": "Fine."}}), "content is a JSON dict"),
        (reply({"content": ["Fine."]}), "something else than parts"),
        (reply({"content": "Fi"}, "abort"), "broke it off"),
        ('{"error": {"message": "CUDA out of memory", "code": 500}}', "an error: CUDA out of memory"),
        ('{"error": "model is loading"}', "an error: model is loading"),
        ("<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head></html>", "HTML, “502 Bad Gateway”"),
        ('data: {"choices": []}\n\ndata: [DONE]', "not valid JSON"),
        ('{"choices":' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"choices": [' + "9" * 10_000 + "]}", "larger than 64 bits"),
    ],
)
def test_what_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(UnreadableReply, match=reason) as error:
        read_completion(text)
    assert len(str(error.value)) < 500


FIELDS = [
    *(
        "choices",
        "message",
        "content",
        "refusal",
        "tool_calls",
        "function_call",
        "function",
        "name",
        "text",
        "thinking",
    ),
    *("finish_reason", "reasoning_content", "usage", "prompt_tokens", "completion_tokens", "error", "code", "type"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_whatever_a_server_sends(reason: Any, message: Any) -> None:
    for text in (json.dumps(message), reply(message, reason, usage=reason), json.dumps({"error": message})):
        try:
            assert isinstance(read_completion(text).choices[0].message.content, str)
        except (UnreadableReply, NotTheModelsWord):
            continue
    for status in (400, 413, 500):
        refused_because(status, message)
    error_message(error_body(json.dumps(message)))


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, {"code": "content_filter", "message": "The response was filtered"}, "did not let the model answer"),
        (400, {"code": "invalid_prompt", "message": "Invalid prompt: flagged"}, "did not let the model answer"),
        (
            400,
            {"code": None, "message": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
            "did not let the model answer",
        ),
        (403, {"code": "content_policy_violation"}, "did not let the model answer"),
        (400, {"code": "context_length_exceeded", "message": "too long"}, "too long"),
        (400, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}, "too long"),
        (400, {"message": "Request blocked by safety filters"}, "did not let the model answer"),
        (403, {"message": "Flagged as violating our usage policy"}, "did not let the model answer"),
        (451, {"message": "Unavailable"}, "did not let the model answer"),
        # vLLM, llama.cpp's server, text-generation-inference
        (400, {"code": 400, "message": "This model's maximum context length is 4096 tokens. However …"}, "too long"),
        (400, {"type": "exceed_context_size_error", "message": "the request exceeds"}, "too long"),
        (422, {"message": "`inputs` tokens + `max_new_tokens` must be <= 4096"}, "too long"),
        (413, "<html><head><title>413 Request Entity Too Large</title>", "too long"),
        (400, {"message": "Unknown parameter: seed"}, None),
        (400, None, None),
        (401, {"code": "content_filter"}, None),
        (429, {"code": "content_filter"}, None),
        (500, {"code": "content_filter"}, None),
    ],
)
def test_errors_that_keep_the_model_from_answering(status: int, body: object, reason: str | None) -> None:
    found = refused_because(status, body)
    assert (found is None) if reason is None else (found is not None and reason in found and str(status) in found)
