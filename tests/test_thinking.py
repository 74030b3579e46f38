from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.thinking import Thought, split_thinking


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("<|a|>", "<think>\nHm.\n</think>\n\nI can't.", Thought("Hm.", "I can't.")),
        ("<|a|><think>\n", "Hm.\n</think>\n\nI can't.", Thought("Hm.", "I can't.")),
        ("<|a|>", "<think>cut while thin", Thought("cut while thin", "")),
        ("<|a|><think>", "cut", Thought("cut", "")),
        ("<|a|>", "The tag <think> opens, </think> closes.", Thought("", "The tag <think> opens, </think> closes.")),
        ("<|a|>", "<think></think>Yes <think>no</think>", Thought("", "Yes <think>no</think>")),
        ("<|a|>", "", Thought("", "")),
    ],
)
def test_split(prompt: str, completion: str, expected: Thought) -> None:
    assert split_thinking(prompt, completion) == expected


@given(st.text().filter(lambda text: "</think>" not in text), st.text())
def test_nothing_is_lost_but_white_space(thinking: str, answer: str) -> None:
    assert split_thinking("", f"<think>{thinking}</think>{answer}") == Thought(thinking.strip(), answer.lstrip())


@given(st.text().filter(lambda text: not text.lstrip().startswith("<think>")))
def test_text_without_thinking_is_unchanged(answer: str) -> None:
    assert split_thinking("", answer) == Thought("", answer)
