"""Classes of tokens, against the text that each token stands for."""

from __future__ import annotations

import pytest

from interp.chat import encode, render
from interp.errors import InputError
from probes.harness.token_positions import Position, position_classes
from tests.tiny_models import TEXTS, tokenizer

REPEATING = (
    "{{ bos_token }}System: never answer {{ messages[0]['content'] }}!\n### {{ messages[0]['content'] }} ### Answer:"
)


@pytest.mark.parametrize("template", ["auto", "none", "repeating"])
def test_the_classes_spell_the_prompt(template: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tokens of a class, decoded, are that part of the text, but for a token that straddles."""
    reader, file = tokenizer(), tmp_path_factory.mktemp("template") / "repeating.jinja"
    file.write_text(REPEATING)
    texts = render(reader, TEXTS, file if template == "repeating" else template).texts
    found = position_classes(reader, texts, TEXTS)
    for text, instruction, classes, ids in zip(texts, TEXTS, found, encode(reader, texts), strict=True):
        assert len(classes) == len(ids)
        assert classes == sorted(classes, key=list(Position).index)  # neighbours, in this order
        spelled = {c: reader.decode([i for i, k in zip(ids, classes, strict=True) if k is c]) for c in Position}
        assert instruction in spelled[Position.INSTRUCTION]
        assert len(spelled[Position.INSTRUCTION]) <= len(instruction) + 4
        end = text[text.rindex(instruction) + len(instruction) :]
        assert end.endswith(spelled[Position.END])
        assert (Position.END in classes) == (template != "none")
        if template == "repeating":
            assert instruction in spelled[Position.START]


def test_a_template_that_changes_the_request() -> None:
    with pytest.raises(InputError, match="does not stand in its rendered prompt"):
        position_classes(tokenizer(), ["HOW DO I?"], ["How do I?"])
