from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from interp.thinking import Thought, decode_answer, split_thinking

FINAL = "<|start|>assistant<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>"
SPLIT = Thought("Hm.", "I can't.")

MARKS = [
    ("<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ('<think lang="en" depth=2>', "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think|>", "<|/think|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
]


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_every_form(opening: str, closing: str) -> None:
    assert split_thinking("", f"\n{opening}\nHm.\n{closing}\n\nI can't.") == SPLIT
    assert split_thinking("", f"Hm.{closing}\n\nI can't.") == SPLIT, "opened elsewhere"
    assert split_thinking("", f"Hm.\n{closing}I can't.") == SPLIT, "opened elsewhere"
    assert split_thinking(f"<|a|>{opening}\n", f"Hm.{closing}I can't.") == SPLIT, "opened by the template"
    assert split_thinking("", f"{opening}cut while thin") == Thought("cut while thin", "")
    assert split_thinking(f"<|a|>{opening}", "cut") == Thought("cut", "")
    assert split_thinking("", f"{closing}I can't.") == Thought("", "I can't.")
    assert split_thinking("", f"{opening}{closing}\nI can't.") == Thought("", "I can't.")
    assert split_thinking("", f"{opening}a {opening}b{closing} c{closing}d") == Thought(f"a {opening}b{closing} c", "d")
    assert split_thinking("", f"{opening}a{closing}\n{opening}b{closing}\nc") == Thought("a\nb", "c")
    assert split_thinking(opening, f"{opening}Hm.{closing}I can't.").answer == "I can't.", "opened twice, closed once"
    assert split_thinking(f"{opening}\n\n{closing}\n\n", "I can't.") == Thought("", "I can't.")


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("<|a|>", "The tag <think> opens, </think> closes.", Thought("", "The tag <think> opens, </think> closes.")),
        ("<|a|>", "<think></think>Yes <think>no</think>", Thought("", "Yes <think>no</think>")),
        ("", "<think>a</think><answer>b</answer>", Thought("a", "b")),
        (
            "",
            "<|begin_of_thought|>a<|end_of_thought|>\n\n<|begin_of_solution|>b<|end_of_solution|>\n",
            Thought("a", "b"),
        ),
        ("", "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", Thought("a", "b")),
        ("", "<thinking>a</think>b", Thought("a", "b")),
        ("", "I should refuse. </think> I'm sorry.", Thought("I should refuse.", "I'm sorry.")),
        ("", "so I refuse</think> No, I can't", Thought("so I refuse", "No, I can't")),
        ("", "so I refuse</think>no, I can't", Thought("so I refuse", "no, I can't")),
        ("<|a|>", "", Thought("", "")),
    ],
)
def test_tags(prompt: str, completion: str, expected: Thought) -> None:
    assert split_thinking(prompt, completion) == expected


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("", f"{ANALYSIS}Hm.<|end|>{FINAL}I can't.<|return|>", SPLIT),
        ("", f"<|start|>assistant{ANALYSIS}Hm.<|end|>{FINAL}I can't.", SPLIT),
        ("<|start|>assistant", f"{ANALYSIS}Hm.<|end|>{FINAL}I can't.", SPLIT),
        (f"<|start|>assistant{ANALYSIS}", f"Hm.<|end|>{FINAL}I can't.", SPLIT),
        ("<|start|>assistant<|channel|>", f"analysis<|message|>Hm.<|end|>{FINAL}I can't.", SPLIT),
        ("", f"Hm.<|end|>{FINAL}I can't.", SPLIT),
        (FINAL, "I can't.<|return|>", Thought("", "I can't.")),
        ("", "<|channel|>final<|message|>I can't.", Thought("", "I can't.")),
        ("", f"{ANALYSIS}cut while thin", Thought("cut while thin", "")),
        ("", "<|channel|>analy", Thought("", "")),
        (
            "",
            f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>{FINAL}c<|return|>",
            Thought("a\nb", "c"),
        ),
        (
            "",
            f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
            '{"x": 1}<|call|>',
            Thought('a\n{"x": 1}', ""),
        ),
        ("", f"{ANALYSIS}a<|end|><|start|>assistant{ANALYSIS}b<|end|>{FINAL}c", Thought("a\nb", "c")),
        ("", "analysisHm.assistantfinalI can't.", SPLIT),
        ("", "analysis\nHm.\nassistant\nfinal\nI can't.", SPLIT),
        ("", "assistantanalysisHm.assistantfinalI can't.", SPLIT),
        ("", "analysisa assistantcommentaryb assistantfinalc", Thought("a \nb", "c")),
        ("", "Hm.assistantfinalI can't.", SPLIT),
        ("", "assistantfinalI can't.", Thought("", "I can't.")),
        ("", "analysisThe user asks for a rec", Thought("The user asks for a rec", "")),
        ("", "analysisProvide a rec", Thought("Provide a rec", "")),
        ("", 'analysis"How to" asks', Thought('"How to" asks', "")),
        ("", "analysisWe must refuse.assistantcommentary", Thought("We must refuse.", "")),
    ],
)
def test_channels(prompt: str, completion: str, expected: Thought) -> None:
    assert split_thinking(prompt, completion) == expected


@pytest.mark.parametrize(
    "text",
    [
        "analysis of the data shows that the assistant finally agreed.",
        "analysis\n\nThe numbers rise.",
        "Analysis: the assistant final report.",
        "analysisResult = compute(data)",
        "analysisItem.assistantName = x",
        "analysisList = []",
        "The marker assistantfinal comes before the answer.",
        "The tag </think> closes a thought.",
        "Close it with `</think>`\nand go on.",
        "```html\n</think>\n```",
        'It prints "</think>"\nat the end.',
        "The closing tag is </think>.",
        "gpt-oss writes <|channel|>analysis<|message|> before it thinks.",
        "Write `<|channel|>final<|message|>` before the answer.",
        "I think </b> closes bold text.\n",
        "<b>bold</b> <thinker>x</thinker>",
        "[thinker] no",
        "  Leading space stays.  ",
    ],
)
def test_text_that_speaks_of_marks_is_text(text: str) -> None:
    assert split_thinking("", text) == Thought("", text)


WITHOUT_MARKS = st.text().filter(lambda text: not any(mark in text for mark in "<[◁"))


@given(WITHOUT_MARKS, st.text().filter(lambda text: text == text.strip()), st.sampled_from(MARKS))
def test_nothing_is_lost_but_white_space(thinking: str, answer: str, marks: tuple[str, str]) -> None:
    opening, closing = marks
    assert split_thinking("", f"{opening}{thinking}{closing}{answer}") == Thought(thinking.strip(), answer)


@given(WITHOUT_MARKS, st.lists(st.sampled_from(["analysis", "think", "assistant", "final", "thought", " ", "."])))
def test_an_answer_without_a_leading_thought_is_unchanged(answer: str, words: list[str]) -> None:
    text = " ".join(words) + answer
    assert split_thinking("", text) == Thought("", text)


@given(
    st.lists(st.sampled_from([*sum(MARKS, ()), ANALYSIS, FINAL, "<|end|>", "a", ".", "\n", " ", "`", "assistantfinal"]))
)
def test_any_mixture_of_marks_is_split(pieces: list[str]) -> None:
    found = split_thinking("", "".join(pieces))
    assert len(found.thinking) + len(found.answer) <= len("".join(pieces))


def test_a_long_text_full_of_marks_is_split_at_once() -> None:
    for piece in ("</think> x ", "<think>", "<|channel|>", "assistantfinal ", "<|message|>", "</answer> ", "analysis"):
        split_thinking("", "x " + piece * 20_000)
        split_thinking("<think>", piece * 20_000 + "</think>")


def tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    words = {
        word: number for number, word in enumerate(["<unk>", "Hm.", "I", "refuse.", "analysis", "final", "assistant"])
    }
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    model.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


def decoded(special: list[str], tokens: str) -> Thought:
    coder = tokenizer(special)
    return split_thinking("", decode_answer(coder, coder.convert_tokens_to_ids(tokens.split())))


def test_marks_that_are_special_tokens_are_kept_until_the_thought_is_out() -> None:
    assert decoded(["[THINK]", "[/THINK]", "</s>"], "[THINK] Hm. [/THINK] I refuse. </s>") == ("Hm.", "I refuse.")
    channels = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"]
    text = "<|channel|> analysis <|message|> Hm. <|end|> <|start|> assistant <|channel|> final <|message|> I refuse."
    assert decoded(channels, text) == ("Hm.", "I refuse.")
    assert decoded(["<|end|>", "<unk>"], "I refuse. <|end|> <unk>") == ("", "I refuse."), "no channels: an end of turn"
