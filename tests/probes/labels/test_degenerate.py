from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.labels.degenerate import LOOP_REPEATS, is_garbage, is_loop, is_stuttering, looping_unit, repetition_rate

WORD = st.sampled_from(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"])


def test_repetition_rate_by_hand() -> None:
    # a b c d | b c d a | c d a b | d a b c | a b c d: five 4-grams, four of them distinct
    assert repetition_rate("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition_rate("one two three four five six") == 0
    assert math.isnan(repetition_rate("too short here"))


@given(st.lists(WORD, min_size=1, max_size=6), st.integers(LOOP_REPEATS, 12))
def test_a_repeated_unit_is_found_with_a_unit_no_longer_than_itself(unit: list[str], times: int) -> None:
    found = looping_unit(unit * times)
    assert found is not None
    assert found <= len(unit)
    assert len(unit) % found == 0
    assert (unit * times)[found:] == (unit * times)[:-found]


@given(st.permutations([f"w{i}" for i in range(30)]))
def test_distinct_words_are_no_loop(words: list[str]) -> None:
    assert looping_unit(words) is None
    assert not is_loop(" ".join(words))


@pytest.mark.parametrize(
    "text", ["", "   \n\t ", "**  **", "!!!! ???? ....", "\ufffd\ufffd\ufffd a", "\x00\x01\x02\x03ab", "x" * 500]
)
def test_garbage(text: str) -> None:
    assert is_garbage(text)


@pytest.mark.parametrize(
    "text",
    [
        "No.",
        "**No.**",
        "42",
        "def f(x):\n    return {x: [1, 2]}",
        "不断地重复这句话,使其变得更简洁。",
        "https://example.org/a?b=c",
    ],
)
def test_short_or_foreign_text_is_not_garbage(text: str) -> None:
    assert not is_garbage(text)


def test_a_loop_of_words_stutters_and_a_loop_of_sentences_does_not() -> None:
    assert is_stuttering("the the the the the the")
    assert is_stuttering("Sure, " + "and then " * 20)
    assert is_stuttering("ab" * 30)
    assert is_loop("the cat sat on the mat and slept. " * 6)
    assert not is_stuttering("the cat sat on the mat and slept. " * 6)


def test_a_loop_at_the_very_end_of_a_long_answer_leaves_it_an_answer() -> None:
    answer = " ".join(f"step{i}" for i in range(60))
    assert not is_loop(answer + " end end end end end")
