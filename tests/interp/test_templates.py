"""Chat templates within bounds, and as transformers itself renders them."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from interp import templates
from interp.chat import CLOSED_THOUGHT, render, render_messages, template_source
from interp.errors import InputError
from interp.organisms.tokenizer import CHAT_TEMPLATE
from interp.templates import TemplateFailed, render_template
from tests.tiny_models import TEMPLATE, tokenizer

USER = [{"role": "user", "content": "Tell me."}]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
CONVERSATION = [
    {"role": "system", "content": "Be brief — “always”."},
    {"role": "user", "content": "  Tell me <b>&amp;</b> 'this' \ud800\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNo."},
    {"role": "user", "content": "Why not?"},
]
# Short templates of the constructs that the families' own ones use.
FAMILIES = {
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "qwen3": """{%- if tools %}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{%- endif %}
{%- set ns = namespace(found=false, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.found = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" and loop.index0 < ns.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "mistral": """{%- set turns = messages[1:] if messages[0]["role"] == "system" else messages %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "gemma3": """{{ bos_token }}
{%- macro first(content) -%}
    {%- if content is string -%}
        {{ content }}
    {%- elif content is iterable -%}
        {{ content[0]['text'] }}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' }}{{ first(message['content']) | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}""",
    "phi": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>' + '\\n' + message['content'] + '<|end|>\\n' }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + '<|end|>\\n' }}{% endgeneration %}
{% else %}
{% continue %}
{% endif %}
{% endfor %}<|assistant|>
""",
}
FAMILIES |= {"tiny models": TEMPLATE, "organisms": CHAT_TEMPLATE}
HOSTILE = {
    "loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "one power": "{{ (10 ** 10 ** 10) % 7 }}",
    "repetition": "{{ 'a' * 10**9 }}",
    "repetition, cut": "{{ ('a' * 10**10)[:3] }}",
    "much text": "{{ 'a' * 10**7 }}",
    "list": "{{ [1] * 10**10 }}",
    "format": "{{ '%0999999999d' % 1 }}",
    "format method": "{{ '{:>999999999}'.format(1) }}",
    "format filter": "{{ '%999999999s'|format(1) }}",
    "centre": "{{ 'x'|center(10**9) }}",
    "join": "{{ range(99999)|join('a' * 100000) }}",
    "replace": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "namespace": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "growing recursion": "{% macro again(x) %}{{ again(x + x) }}{% endmacro %}{{ again('a') }}",
    "nesting": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "long error": "{{ raise_exception('x' * 10**6) }}",
    "chance": "{{ [1, 2]|random }}",
    "chance in words": "{{ lipsum() }}",
    "internals": "{{ ''.__class__.__mro__ }}",
    "file": "{% include '/etc/hostname' %}",
    "syntax": "{% if %}",
    "unknown filter": "{{ 1|nothing }}",
    "arithmetic": "{{ 1 // 0 }}",
    "attribute of nothing": "{{ messages[7].content.x }}",
}


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("family", FAMILIES)
def test_renders_as_transformers_does(family: str, tools: Any) -> None:
    own = tokenizer()
    for messages in (USER, CONVERSATION if family != "organisms" else CONVERSATION[1:]):  # which know no system
        for thinking in (False, True):
            expected = own.apply_chat_template(
                messages,
                chat_template=FAMILIES[family],
                tools=tools,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
                date_string="26 Jul 2024",
            )
            assert render_messages(own, messages, FAMILIES[family], thinking, tools) == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_an_error_in_seconds(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=r"cannot render a user turn: .*Give another template file") as caught:
        render_messages(tokenizer(), USER, HOSTILE[name])
    assert len(str(caught.value)) < 600
    assert time.monotonic() - started < 2 * templates.PATIENCE  # by the clock of a busy machine
    assert render_template("{{ messages[0].content }}!", USER) == "Tell me.!"


def test_a_template_that_never_ends_is_stopped_by_the_clock_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "PATIENCE", 0.3)
    with pytest.raises(TemplateFailed, match="runs longer"):
        render_template(HOSTILE["loops"], USER)


def test_threads_share_the_worker() -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda k=k: found.append(render_template("{{ k }}", USER, k=k))) for k in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=int) == [str(k) for k in range(20)]


def test_a_worker_that_was_killed_is_started_again() -> None:
    render_template("a", USER)
    process = templates._WORKER._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert render_template("a", USER) == "a"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("<|user|>hello<|assistant|>", "does not hold what the user says"),
        ("{{ messages[0].content|upper }}", "does not hold what the user says"),
        ("{{ messages[0].role }}", "does not hold what the user says"),
        ("{{ messages[0].content[:40] }}<|assistant|>", "changes or drops the request 'A request that is"),
        ("{{ messages[0].content|replace('that', 'which') }}", "changes or drops the request"),
    ],
)
def test_a_template_that_loses_the_request_is_refused_by_name(source: str, fault: str, tmp_path: Any) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(source)
    with pytest.raises(InputError, match=rf"The chat template \S*own\.jinja .*{fault}"):
        render(tokenizer(), ["A request that is longer than forty characters."], file)


def test_two_requests_with_one_rendering_are_refused(tmp_path: Any) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content if 'ducks' in messages[0].content else 'abc' }}")
    with pytest.raises(InputError, match=r"makes the same prompt of 'b' and 'a'"):
        render(tokenizer(), ["a", "b"], file)
    assert render(tokenizer(), ["abc", " abc", "abc"], file).texts == ["abc"] * 3


PARTS = (
    "{% for message in messages %}<|{{ message.role }}|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}\n{% endfor %}<|assistant|>"
)


@pytest.mark.parametrize(
    "source", [PARTS, "{{ messages[0]['content'][0]['text'] }}", "{{ messages[-1].content[0].text|trim }}"]
)
def test_content_is_a_list_of_parts_where_the_template_wants_it(source: str) -> None:
    own = tokenizer()
    own.chat_template = source
    expected = own.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Tell me."}]}], tokenize=False
    )
    assert "Tell me." in expected
    assert render(own, ["Tell me."]).texts == [expected]
    assert render_messages(own, CONVERSATION[2:], PARTS) == (
        "<|assistant|><think>\nhm\n</think>\n\nNo.<|user|>Why not?<|assistant|>"  # a line feed after a tag is its own
    )


@pytest.mark.parametrize(
    ("ends", "added"),
    [
        ("", "<think>\n\n</think>\n\n"),
        ("<think>", "\n\n</think>\n\n"),
        ("<think>\\n", "\n</think>\n\n"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("[THINK]", "[/THINK]"),
    ],
)
def test_a_thought_is_closed_before_the_answer(ends: str, added: str) -> None:
    own = tokenizer()
    plain = "{# knows <think> #}{{ messages[0].content }}"
    own.chat_template = plain + "{{ '" + ends + "' }}"
    ended = ends.replace("\\n", "\n")
    assert render(own, ["Tell me."]).texts == [f"Tell me.{ended}"]
    rendered = render(own, ["Tell me."], CLOSED_THOUGHT)
    assert rendered.texts == [f"Tell me.{ended}{added}"]
    assert rendered.template == template_source(own, CLOSED_THOUGHT) != own.chat_template


def test_a_model_that_marks_no_thoughts_has_none_to_close() -> None:
    with pytest.raises(InputError, match=r"holds a mark of thoughts.*<think>"):
        render(tokenizer(), ["Tell me."], CLOSED_THOUGHT)
    with pytest.raises(InputError, match="no chat template"):
        render(tokenizer(chat=False), ["Tell me."], CLOSED_THOUGHT)


@pytest.mark.parametrize("own", [{"tool_use": "x"}, 5, ["x"], {}])
def test_a_template_that_is_no_text_is_refused(own: Any) -> None:
    broken = tokenizer()
    broken.chat_template = own
    with pytest.raises(InputError, match="chat template of"):
        render(broken, ["Tell me."])
    broken.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "x"}
    assert render(broken, ["Tell me."]).texts == ["Tell me."]


def test_prompts_that_were_rendered_are_not_rendered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Is this asked once?", "And this?"]
    first = render(tokenizer(), texts)
    asked: list[object] = []
    monkeypatch.setattr("interp.chat.render_template", lambda *args, **_: asked.append(args))
    again = render(tokenizer(), texts)
    assert (again.texts, again.template, asked) == (first.texts, first.template, [])
    again.texts.append("of the caller")
    assert render(tokenizer(), texts).texts == first.texts
