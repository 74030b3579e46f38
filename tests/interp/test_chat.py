from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from interp.chat import encode, render
from interp.errors import InputError
from tests.tiny_models import tokenizer

BOS = 0
WITHOUT_BOS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}<|assistant|>"
WITH_TWO_BOS = "{{ bos_token }}{{ bos_token }}" + WITHOUT_BOS
THINKING = (
    WITHOUT_BOS + "{% if enable_thinking is not defined or enable_thinking %}<think>{% else %}<answer>{% endif %}"
)
DATED = (
    """  {%- if strftime_now is defined %}
    {%- set today = strftime_now("%A, %-d %B %Y, week of %b %d") %}
{%- endif %}
{{ today }}|{{ date_string }}|"""
    + WITHOUT_BOS
)


@pytest.fixture(scope="module")
def chat() -> PreTrainedTokenizerFast:
    return tokenizer()


def write(tmp_path: Path, source: str) -> Path:
    path = tmp_path / "template.jinja"
    path.write_text(source)
    return path


def test_a_chat_model_gets_one_user_turn_and_the_generation_prompt(chat: PreTrainedTokenizerFast) -> None:
    rendered = render(chat, ["Tell me.", "x"])
    assert rendered.texts == ["<s><|user|>Tell me.\n<|assistant|>", "<s><|user|>x\n<|assistant|>"]
    assert rendered.template == chat.chat_template
    assert rendered.warnings == []


def test_raw_text_stays_as_it_is(chat: PreTrainedTokenizerFast) -> None:
    rendered = render(chat, ["Tell me."], "none")
    assert (rendered.texts, rendered.template, rendered.warnings) == (["Tell me."], None, [])


def test_a_model_without_a_template_gets_raw_text_and_a_warning() -> None:
    rendered = render(tokenizer(chat=False), ["Tell me."], "auto")
    assert rendered.texts == ["Tell me."]
    assert "no chat template" in rendered.warnings[0]


def test_a_required_template_that_is_missing_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no chat template.*template file"):
        render(tokenizer(chat=False), ["Tell me."], "chat")


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("source", [WITHOUT_BOS, "{{ bos_token }}" + WITHOUT_BOS, WITH_TWO_BOS])
def test_exactly_one_bos(tmp_path: Path, adds_bos: bool, source: str) -> None:
    """However many of tokenizer and template emit one; none only where neither does."""
    one = tokenizer(adds_bos=adds_bos)
    (ids,) = encode(one, render(one, ["Tell me."], write(tmp_path, source)).texts)
    expected = 1 if adds_bos or "bos_token" in source else 0
    assert ids.count(BOS) == expected
    assert ids[:expected] == [BOS] * expected
    assert one.decode(ids[expected:]) == "<|user|>Tell me.\n<|assistant|>"


def test_raw_text_is_tokenized_as_the_tokenizer_does(chat: PreTrainedTokenizerFast) -> None:
    assert encode(chat, ["Tell me.", ""]) == chat(["Tell me.", ""]).input_ids
    assert encode(chat, []) == []


def test_nothing_is_appended_to_a_prompt() -> None:
    """A tokenizer that ends texts with EOS would have us measure the token after EOS."""
    from tokenizers import processors

    ends = tokenizer()
    ends._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert ends("x").input_ids[-1] == 1
    assert encode(ends, ["x"])[0][-1] != 1


def test_a_thinking_template_is_told_not_to_think(tmp_path: Path, chat: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path, THINKING)
    assert render(chat, ["x"], path).texts[0].endswith("<answer>")
    assert render(chat, ["x"], path, thinking=True).texts[0].endswith("<think>")


def test_a_dated_template_gets_a_fixed_date(tmp_path: Path, chat: PreTrainedTokenizerFast) -> None:
    rendered = render(chat, ["x"], write(tmp_path, DATED))
    assert rendered.texts[0].lstrip() == "Friday, 26 July 2024, week of Jul 26|26 Jul 2024|<|user|>x\n<|assistant|>"
    assert rendered.template == DATED


def test_template_files_that_cannot_be_used_are_refused(tmp_path: Path, chat: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"absent\.jinja cannot be read"):
        render(chat, ["x"], tmp_path / "absent.jinja")
    for source in ("{% if %}", "{{ raise_exception('only system turns') }}", "{{ 'a' + 1 }}"):
        with pytest.raises(InputError, match="cannot render a user turn"):
            render(chat, ["x"], write(tmp_path, source))
