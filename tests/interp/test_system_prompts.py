"""System prompts, beside what transformers' own `apply_chat_template` makes of a conversation that holds one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from interp.chat import ChatTemplate, render, render_messages, template_source
from interp.errors import InputError
from interp.system_prompts import own_system_prompt, system_prompt
from tests.tiny_models import tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start|>system<|end|>\n\nCutting Knowledge Date: December 2023\n\n' }}{{- system_message }}{{- '<|eot|>' }}"
    "{%- for message in messages %}{{- '<|start|>' + message['role'] + '<|end|>\n\n'+ message['content'] | trim + "
    "'<|eot|>' }}{%- endfor %}{{- '<|start|>assistant<|end|>\n\n' }}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{{'<start_of_turn>model\n'}}"
)
GEMMA3 = (
    "{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for message in rest -%}{{ '<start_of_turn>' + message['role'] + '\n' + (first if loop.first else '') }}"
    "{%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}{{'<start_of_turn>model\n'}}"
)
"""Takes contents as lists of parts, and has no system turn: the words stand in the first user turn."""
TOLD = {"smollm2": SMOLLM2, "llama3": LLAMA3, "gemma3": GEMMA3}
PROMPT = 'Answer in one word. Quote "it\'s", {{ braces }}, {% tags %}, \\n, ünïcödé, 日本 and 🦆.\nA second line.'


def with_template(source: str) -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.chat_template = source
    return made


def official(made: PreTrainedTokenizerFast, *turns: tuple[str, str], parts: bool = False) -> str:
    """What transformers itself makes of a conversation."""
    messages = [{"role": r, "content": [{"type": "text", "text": t}] if parts else t} for r, t in turns]
    text: Any = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


@pytest.mark.parametrize("name", TOLD)
def test_a_system_prompt_is_rendered_as_a_system_turn_is(name: str) -> None:
    made = with_template(TOLD[name])
    (text,) = render(made, "How are you?", ChatTemplate(system=PROMPT)).texts
    assert text == official(made, ("system", PROMPT), ("user", "How are you?"), parts=name == "gemma3")
    assert PROMPT in text
    assert render(made, "x", ChatTemplate()).texts == render(made, "x").texts


@pytest.mark.parametrize("name", TOLD)
def test_a_conversation_that_has_one_keeps_it(name: str) -> None:
    made, turns = with_template(TOLD[name]), [("system", "Mine."), ("user", "x"), ("assistant", "y"), ("user", "z")]
    source = template_source(made, ChatTemplate(system=PROMPT))
    assert source is not None
    messages = [{"role": role, "content": text} for role, text in turns]
    assert render_messages(made, messages, source) == official(made, *turns, parts=name == "gemma3")


@pytest.mark.parametrize(
    ("source", "own"),
    [
        (SMOLLM2, "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        (LLAMA3, ""),
        (GEMMA2, ""),
        (GEMMA3, ""),
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", ""),
    ],
)
def test_none_empties_what_a_template_inserts_itself_and_changes_no_other(source: str, own: str) -> None:
    made = with_template(source)
    found = own_system_prompt(source, lambda s: render_messages(made, [{"role": "user", "content": "q"}], s))
    assert found == own
    (text,) = render(made, "x", ChatTemplate(system="none")).texts
    expected = official(made, ("system", ""), ("user", "x")) if own else render(made, "x").texts[0]
    assert text == expected


def test_templates_that_take_none_are_refused_in_one_paragraph() -> None:
    with pytest.raises(InputError, match=r"takes no system prompt: System role not supported. Expected .* Leave --sys"):
        render(with_template(GEMMA2), "x", ChatTemplate(system="Be terse."))
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="takes no system prompt: it drops or changes"):
        render(with_template(users), "x", ChatTemplate(system="Be terse."))
    with pytest.raises(InputError, match="cannot render a user turn"):
        render(with_template("{% if %}"), "x", ChatTemplate(system="Be terse."))
    for made, name in ((with_template(SMOLLM2), "none"), (tokenizer(chat=False), "auto")):
        with pytest.raises(InputError, match="A system prompt needs a chat template"):
            render(made, "x", ChatTemplate(name, "Be terse."))
        assert render(made, "x", ChatTemplate("none", "none")).texts == ["x"]


def test_one_that_is_inserted_in_any_case_cannot_be_left_out() -> None:
    always = SMOLLM2.replace("message['content']", "(message['content'] or 'Always.')").replace(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "Always."
    )
    with pytest.raises(InputError, match=r"inserts its own system prompt 'Always\.' in the place of an empty one"):
        render(with_template(always), "x", ChatTemplate(system="none"))


def test_a_closed_thought_comes_after_it() -> None:
    thinking = SMOLLM2 + "{{ '<think>\n' }}"
    (text,) = render(with_template(thinking), "x", ChatTemplate("closed-thought", "Be terse.")).texts
    assert text.startswith("<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n")
    assert text.endswith("</think>\n\n")


def test_texts_and_files(tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes("\ufeffBe terse.\nAnd kind.\n".encode())
    assert system_prompt(str(file)) == "Be terse.\nAnd kind."
    assert system_prompt("prompt", lambda name: str(tmp_path / name)) == "Be terse.\nAnd kind."
    for text in ("auto", "none", "You are either/or: choose.", "prompt", "x" * 10_000):
        assert system_prompt(text) == text


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (" \n", "is empty"),
        ("a\0b", "no text"),
        ("a\ud800", "no text"),
        ("absent.txt", "cannot be read"),
        ("a/b", "a/b"),
    ],
)
def test_what_can_be_no_system_prompt(given: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        system_prompt(given)
