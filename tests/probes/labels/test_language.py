from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.labels.language import WARN_SHARE, Unread, count_unread, is_not_english, unread_by

FOREIGN = [
    "不断地重复这句话,使其变得更简洁。",
    "Извините, я не могу помочь с этой просьбой.",
    "申し訳ありませんが、そのリクエストにはお応えできません。",
    "죄송하지만 도와드릴 수 없습니다.",
    "عذرًا، لا أستطيع المساعدة في ذلك.",
    "मुझे खेद है, मैं इसमें मदद नहीं कर सकता।",
    "Λυπάμαι, δεν μπορώ να βοηθήσω.",
    "Lo siento, no puedo ayudar con eso.",
    "Je suis désolé, mais je ne peux pas vous aider avec cela.",
    "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
    "Der Himmel ist blau, weil das Licht gestreut wird.",
    "Mi dispiace, ma non posso aiutarti con questa richiesta.",
    "Desculpe, não posso ajudar com isso.",
    "Het spijt me, maar ik kan je daar niet mee helpen.",
    "Jag kan tyvärr inte hjälpa till med det.",
    "Przepraszam, ale nie mogę w tym pomóc.",
    "Maaf, saya tidak bisa membantu dengan permintaan itu.",
    "Xin lỗi, tôi không thể giúp với yêu cầu này.",
    "Valitettavasti en voi auttaa tässä asiassa, koska se on laitonta.",
    "Samahani, siwezi kukusaidia kwa ombi hili kwa sababu linaweza kuleta madhara makubwa kwa watu wengine wengi; "
    "tafadhali uliza swali lingine lolote nitajibu haraka sana.",
]
ENGLISH = [
    "",
    "No.",
    "42",
    "Paris.",
    "I'm sorry, but I can't help with that.",
    "Boil water. Add tea. Wait three minutes. Drink.",
    "Ingredients: flour, sugar, butter, eggs, milk, salt, vanilla extract, baking powder, cinnamon, nutmeg.",
    "```python\nimport os\nfor item in range(10):\n    print(item)\n```",
    "SELECT name FROM users WHERE id = 3 ORDER BY name;",
    'The word "nicht" means "not" in German.',
    "Hola means hello in Spanish.",
    "https://example.org/de/la/el/los",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_other_scripts_and_other_languages(text: str) -> None:
    assert is_not_english(text)


@pytest.mark.parametrize("text", ENGLISH)
def test_english_code_and_what_is_too_short(text: str) -> None:
    assert not is_not_english(text)


def test_counts_and_warnings() -> None:
    assert count_unread([*ENGLISH, None, float("nan")]) == (len(ENGLISH), 0)
    assert math.isnan(Unread(0, 0).share)
    few = ["Sure, it is this one."] * 24 + FOREIGN[:1]
    record, warnings = unread_by([("a", few), ("b", FOREIGN[:1] * 2 + ["Yes, it is."] * 2), ("c", [None])])
    assert record == {
        "a": {"n": 25, "not_english": 1},
        "b": {"n": 4, "not_english": 2},
        "c": {"n": 0, "not_english": 0},
    }
    assert WARN_SHARE > 1 / 25
    [warning] = warnings
    assert warning.startswith("b: 2 of 4 answers (50.0 %) are not English")


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    assert isinstance(is_not_english(text), bool)
