"""A model that thinks although it is told not to is refused by the probes of the first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from interp import HookedModel, load
from interp.errors import InputError
from interp.generation import Answer
from probes.entropy import probe as entropy
from probes.harness import thought_check
from probes.harness.comparison import Cells, compare
from probes.harness.prompts import PromptSet
from tests.tiny_models import TEXTS

HARMFUL, HARMLESS = PromptSet("a", tuple(TEXTS[:2])), PromptSet("b", tuple(TEXTS[3:]))


@pytest.fixture
def model(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


def says(model: HookedModel, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model answer everything with these words, spelled out."""
    tokens = model.tokenizer(words, add_special_tokens=False).input_ids

    def given(_: HookedModel, texts: Sequence[str], n_tokens: int) -> list[Answer]:
        return [Answer(tokens[:n_tokens], False) for _ in texts]

    monkeypatch.setattr(thought_check, "answers", given)


@pytest.mark.parametrize(
    "words",
    [
        *("<think>\nThe user wants", "\n<think>Okay", "[THINK]Hm", "<|channel|>analysis<|message|>We", "<thinking>So"),
        *("<seed:think>Well", "◁think▷A", "<|begin_of_thought|>\n\nOkay", "<|channel|>final<|message|>Sorry"),
    ],
)
def test_a_thought_before_the_answer_is_an_error_with_the_remedy(
    words: str, model: HookedModel, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    says(model, words, monkeypatch)
    with pytest.raises(InputError, match=r"begins with a thought .*--template closed-thought"):
        compare(model, Cells({"again": tiny("llama")}, model), HARMFUL, HARMLESS, force=True)


@pytest.mark.parametrize("words", ["I cannot", "<b>No</b> way", "[1] See", "", "< 5", "Think!", "<thin ice>"])
def test_an_answer_is_none(words: str, model: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    says(model, words, monkeypatch)
    assert thought_check.thought(model, TEXTS) == ""


@pytest.mark.parametrize("ends", ["<think>", "<think>\\n", "[THINK]", "<|channel|>analysis<|message|>"])
def test_a_template_that_opens_a_thought_whatever_it_is_told(
    ends: str, model: HookedModel, tiny: Callable[[str], Path]
) -> None:
    """Its prompt is refused; with the thought closed behind it, the first token is measured after that."""
    model.tokenizer.chat_template = "{{ messages[0].content }}{{ '" + ends + "' }}"
    cells = Cells({"again": tiny("llama")}, model)
    with pytest.raises(InputError, match="begins with a thought"):
        entropy.measure(model, cells, HARMFUL, HARMLESS, force=True)
    comparison = compare(model, cells, HARMFUL, HARMLESS, template="closed-thought", force=True)
    assert comparison.settings["template"] == "closed-thought"
    expected = comparison.texts["harmful"][0]
    assert expected.startswith(TEXTS[0] + ends.replace("\\n", "\n"))
    assert thought_check.thought(model, [expected]) == ""


def test_the_model_is_asked_in_truth(model: HookedModel) -> None:
    """Without a double: what the argmax of the logits says is what is looked at."""
    before = thought_check._begin(model, TEXTS, 1)
    tokens = model.logits(TEXTS).argmax(-1).tolist()
    assert before == [model.tokenizer.decode([token]) if token != 1 else "" for token in tokens]
