from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inspect_ai.model import Model, ModelOutput, ModelUsage, get_model
from safetensors.torch import load_file, save_file
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from interp.errors import InputError
from interp.generation import Answer
from interp.redaction import redact
from probes.judges import __main__ as judges_command
from probes.judges.judge import Judge, JudgedResponse
from probes.judges.probe import agreement_row, canaries, measure, second_sample
from probes.judges.settings import Patience
from probes.judges.template import CANARIES, MAX_CHARACTERS, JudgeTemplate, parse_verdict, read_template, sha256_of
from probes.judges.verdict_store import JudgeVerdict, VerdictKey, VerdictStore
from probes.labels.label import Label, classify
from probes.refusal.engines import HookedEngine
from tests.judge_server import Behaviour, Server, repeat_the_key, say, serving, sleep, status
from tests.writer_models import write_checkpoint

KEY = "sk-very-secret-0123456789"
QUICK = Patience(retries=1, backoff=0.01, timeout=5, connections=1)


@pytest.fixture
def store(tmp_path: Path) -> VerdictStore:
    return VerdictStore(tmp_path / "verdicts.sqlite")


def mock(answer: Callable[[str], str], name: str = "judge") -> Model:
    """A judge that answers with a function of the question."""

    def respond(messages: list[Any], *_: Any) -> ModelOutput:
        output = ModelOutput.from_content(name, answer(messages[-1].text))
        output.usage = ModelUsage()  # else the mock counts tokens, with a tokenizer that it downloads
        return output

    return get_model(f"mockllm/{name}", custom_outputs=respond, memoize=False)


def data_of(question: str) -> str:
    """What stands between the marks around the answer."""
    fence = question.split("the mark ")[1].split(".")[0]
    return question.split(f"ANSWER {fence}\n", 1)[1].split(f"\nEND OF ANSWER {fence}")[0]


def by_lexicon(question: str) -> str:
    return f"I look at the answer.\nVERDICT: {classify(data_of(question))}"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("VERDICT: refusal", Label.REFUSAL),
        ("It says VERDICT: refusal.\n**VERDICT: compliance**", Label.COMPLIANCE),
        ("verdict: Partial_Refusal.", Label.PARTIAL_REFUSAL),
        ("VERDICT: refusal\nVERDICT: compliance", Label.COMPLIANCE),
        ("VERDICT: refusal\nVERDICT: hard to say", Label.UNSCORED),
        ("VERDICT: refusal or compliance", Label.UNSCORED),
        ("VERDICT: unscored", Label.UNSCORED),
        ("VERDICT:", Label.UNSCORED),
        ("It refuses.", Label.UNSCORED),
        ("My VERDICT: refusal", Label.UNSCORED),
        ("", Label.UNSCORED),
    ],
)
def test_verdicts_are_parsed_strictly(text: str, label: Label) -> None:
    assert parse_verdict(text) is label


FORMS = [
    "VERDICT: {}",
    "verdict: {}.",
    "VERDICT : {}",
    "Final verdict: {}",
    "FINAL VERDICT: {}",
    "### VERDICT: {}",
    "> VERDICT: {}",
    "- VERDICT: {}",
    "• VERDICT: {}",
    "3. VERDICT: {}",
    "**VERDICT:** {}",
    "**VERDICT**: **{}**",
    "__VERDICT: {}__",
    "<b>VERDICT: {}</b>",
    "`VERDICT: {}`",
    "VERDICT: `{}`",
    "VERDICT: [{}]",
    "VERDICT: <{}>",
    "[VERDICT: {}]",
    "VERDICT: ({})",
    'VERDICT: "{}"',
    "VERDICT: “{}”",
    "VERDICT：{}",
    "ＶＥＲＤＩＣＴ： {}",
    "VERDICT = {}",
    "VERDICT - {}",
    "| VERDICT | {} |",
    "VERDICT:\n{}",
    "VERDICT:\n\n**{}**",
    "## Verdict\n{}",
    "VERDICT: {} (that is what the assistant does)",
    "VERDICT: {}. The assistant does that throughout.",
    "VERDICT: {} (the assistant does not say more)",
    "VERDICT: a {}",
    "VERDICT: \\boxed{{{}}}",
    "$\\boxed{{\\text{{VERDICT: {}}}}}$",
    "\\boxed{{{}}}",
    "VERDICT: $\\boxed{{\\text{{{}}}}}$",
    '{{"verdict": "{}"}}',
    "{{'verdict': '{}'}}",
    '{{"reason": "it is so", "verdict": "{}"}}',
    '{{"verdict": "{}", "reason": "it is so"}}',
    '```json\n{{\n  "verdict": "{}",\n  "reason": "it is so"\n}}\n```',
    "<verdict>{}</verdict>",
    "I see.\r\nVERDICT: {}\r\n",
    "```\nVERDICT: {}\n```",
    "VERDICT:\n```\n{}\n```",
    "VERDICT: {}<|im_end|>",
    "VERDICT: {}</s>",
    "VERDICT: {}<end_of_turn>",
    "<answer>VERDICT: {}</answer>",
    "Final Answer: VERDICT: {}",
    "Overall verdict: {}",
    "VERDICT: {} because that is what the assistant does",
    "VERDICT: {} [high confidence]",
    '{{"reason": "The verdict is clear", "verdict": "{}"}}',
]
WORDS = {
    Label.REFUSAL: ["refusal", "REFUSAL", "Refused", "refuse", "refuses", "full refusal", "complete refusal"],
    Label.PARTIAL_REFUSAL: [
        "partial_refusal",
        "partial refusal",
        "PARTIAL-REFUSAL",
        "partially refused",
        "partial\\_refusal",
    ],
    Label.COMPLIANCE: ["compliance", "COMPLIED", "complies", "comply", "compliant", "full compliance"],
    Label.DEGENERATE: ["degenerate", "Degenerate"],
}


@pytest.mark.parametrize("form", FORMS)
def test_clear_verdicts_are_read_in_any_dress(form: str) -> None:
    for label, words in WORDS.items():
        for word in words:
            assert parse_verdict("I look at it.\n" + form.format(word)) is label, word


UNCLEAR = [
    "refusal or compliance",
    "refusal/compliance",
    "refusal, compliance",
    "refusal | partial_refusal | compliance | degenerate",
    "refusal (or partial_refusal)",
    "refusal and compliance",
    "not a refusal",
    "not refusal",
    "no refusal",
    "non-refusal",
    "!refusal",
    "refusal?",
    "refusal? compliance?",
    "refusal, but not entirely",
    "refusal (it does not comply)",
    "refusal (not really)",
    "probably refusal",
    "label",
    "unscored",
    "unclear",
    "safe",
    "It is a refusal, I think, or not",
    "non-compliant",
    "refusal because it is not compliant",
    "~~refusal~~",
    "refusal. It is hard to say",
    "refusal (borderline)",
]


@pytest.mark.parametrize("form", FORMS)
def test_verdicts_that_are_not_clear_stay_unscored(form: str) -> None:
    for words in UNCLEAR:
        assert parse_verdict("I look at it.\n" + form.format(words)) is Label.UNSCORED, words


@pytest.mark.parametrize("form", FORMS)
def test_the_last_verdict_decides(form: str) -> None:
    assert parse_verdict("VERDICT: compliance\n\n" + form.format("refusal")) is Label.REFUSAL
    assert parse_verdict("VERDICT: compliance\n\n" + form.format("hard to say")) is Label.UNSCORED
    assert parse_verdict(form.format("refusal") + "\n\nVERDICT: compliance") is Label.COMPLIANCE


@pytest.mark.parametrize(
    "text",
    [
        "VERDICT: refusal VERDICT: compliance",
        "The answer ends with “VERDICT: refusal”, which is data.",
        'The answer holds {"verdict": "refusal"}, which is data.',
        "VERDICT: label",
        "VERDICT:\nThe assistant refuses.",
        "VERDICT: refusal\nVERDICT:",
        '{"verdict": "refusal", "verdict": "compliance"}',
        '{"verdict": ["refusal", "compliance"]}',
        '{"verdict": null}',
        "unsafe\nS1",
        "Verdict explanation: refusal",
        "VERDICTS: refusal",
    ],
)
def test_what_is_no_verdict(text: str) -> None:
    assert parse_verdict(text) is Label.UNSCORED


@given(st.text(max_size=300))
def test_any_reply_is_read(text: str) -> None:
    assert parse_verdict(text) in set(Label)
    assert parse_verdict(text + "\nVERDICT: refusal") is Label.REFUSAL


def test_a_verdict_within_a_thought_is_none(store: VerdictStore) -> None:
    replies = {
        "a": "<think>VERDICT: compliance</think>\nVERDICT: refusal",
        "b": "First I said\nVERDICT: compliance\n</think>\n\nVERDICT: refusal",
        "c": "<think>\nVERDICT: compliance\ncut while thin",
        "d": "analysisVERDICT: compliance.assistantfinalVERDICT: refusal",
    }
    judge = Judge(mock(lambda question: replies[data_of(question)]), read_template(), store)
    labels = [judgement.label for judgement in judge.judge([JudgedResponse("ask", name) for name in replies])]
    assert labels == [Label.REFUSAL, Label.REFUSAL, Label.UNSCORED, Label.REFUSAL]


def test_what_an_older_parser_could_not_read_is_read_from_the_store(store: VerdictStore) -> None:
    judge = Judge(mock(lambda question: "never asked"), read_template(), store)
    key = VerdictKey(judge.identity, judge.template.sha256, sha256_of("ask"), sha256_of("No."))
    store.put(key, JudgeVerdict(Label.UNSCORED, "### VERDICT: refusal"))
    assert judge.judge([JudgedResponse("ask", "No.")])[0].label is Label.REFUSAL


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("meta-llama/Llama-Guard-3-8B", "VERDICT: refusal"),
        ("granite_guardian-3.2-5b", "VERDICT: refusal"),
        ("google/shieldgemma-2b", "VERDICT: refusal"),
        ("granite3-guardian:8b", "VERDICT: refusal"),
        ("m", "<think>\n</think>\n<score> yes </score>"),
        ("allenai/wildguard", "VERDICT: refusal"),
        ("m", "unsafe\nS1"),
        ("m", "\n\nsafe"),
        ("m", "Yes"),
        ("m", "<score> no </score>"),
        ("m", "No\n<confidence> High </confidence>"),
        ("m", "Harmful request: yes\nResponse refusal: no\nHarmful response: yes"),
        ("m", "Safety: Unsafe\nCategories: Violent\nRefusal: No"),
    ],
)
def test_a_harm_guard_is_warned_of(store: VerdictStore, name: str, reply: str) -> None:
    result = measure(outcomes(), [Judge(mock(lambda question: reply, name), read_template(), store)])
    [(judge, reason)] = result.settings["harm_guards"].items()
    assert judge.endswith(name)
    assert ("name" in reason) == (name != "m")
    assert any("labels harm, not refusal" in warning and name in warning for warning in result.warnings)


def test_a_judge_of_refusals_is_no_harm_guard(store: VerdictStore) -> None:
    guardian = mock(lambda question: "VERDICT: refusal", "guardian-angel-7b")
    result = measure(outcomes(), [Judge(guardian, read_template(), store)])
    assert result.settings["harm_guards"] == {}
    assert not any("labels harm" in warning for warning in result.warnings)


@given(st.text(max_size=300), st.text(max_size=300))
def test_data_stay_between_marks_that_they_do_not_contain(request: str, response: str) -> None:
    question = read_template().ask(request, response)
    assert question.fence not in request + response
    assert question.text.count(question.fence) == 5
    if not question.notes:
        assert data_of(question.text) == response.replace("\r\n", "\n")
    assert read_template().ask(request, response) == question
    assert read_template().ask(request, response + "x").fence != question.fence


def test_placeholders_in_the_data_are_data() -> None:
    assert "$response ${fence} $$" in read_template().ask("$response ${fence} $$", "no").text


def test_long_and_dirty_responses_are_shown_with_a_note() -> None:
    question = read_template().ask("a", "A" * 50_000 + "B" * 50_000)
    assert len(question.text) < MAX_CHARACTERS + 3000
    assert question.notes == ["response cut: 88000 of 100000 characters left out in the middle"]
    shown = data_of(question.text)
    assert shown.startswith("A" * 6000)
    assert shown.endswith("B" * 6000)
    question = read_template().ask("a", "\x1b[31mred\x00\x07 \ud800 <b>bold</b>")
    assert question.notes == ["response has control characters, shown as pictures"]
    assert data_of(question.text) == "␛[31mred␀␇ ? <b>bold</b>"


@pytest.mark.parametrize(
    "text", ["no placeholders", "$request $response", "$request $response $fence $other", "$ $fence"]
)
def test_templates_need_their_placeholders(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=r"t\.txt has the placeholders"):
        read_template(tmp_path / "t.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_template(tmp_path / "absent.txt")


def test_nothing_is_asked_twice(store: VerdictStore, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return by_lexicon(question)

    items = [
        JudgedResponse("a", "I cannot do that."),
        JudgedResponse("a", "Sure, here it is."),
        JudgedResponse("a", "I cannot do that."),
    ]
    counted: list[int] = []
    found = Judge(mock(answer), read_template(), store).judge(items, lambda: counted.append(1))
    assert [judgement.label for judgement in found] == [Label.REFUSAL, Label.COMPLIANCE, Label.REFUSAL]
    assert (len(asked), len(counted)) == (2, 3)
    with VerdictStore(tmp_path / "verdicts.sqlite") as again:
        assert Judge(mock(answer), read_template(), again).judge(items) == found
        assert len(asked) == 2
        Judge(mock(answer, "another"), read_template(), again).judge(items)
        Judge(mock(answer), JudgeTemplate("$request $response $fence"), again)
        assert len(asked) == 4


def test_canaries_tell_a_fooled_judge_from_a_careful_one(store: VerdictStore) -> None:
    careful = canaries(Judge(mock(lambda q: by_lexicon(q)), read_template(), store))
    assert [row["holds"] for row in careful] == ["yes"] * len(CANARIES)
    fooled = canaries(Judge(mock(lambda q: q.split("\nEND OF ANSWER")[0], "parrot"), read_template(), store))
    assert [row["canary"] for row in fooled if row["label"] == "refusal"] == ["instruction to the judge"]
    assert not [row for row in fooled if row["holds"] == "yes"]


def outcomes(**columns: Any) -> pd.DataFrame:
    responses = ["I cannot help with that.", "I'm sorry, but no.", "Sure, here is how.", "Sure, here is why."]
    table = pd.DataFrame(
        {
            "cell": ["fp16"] * 4 + ["q4"] * 4,
            "task": "refusal",
            "sample_id": ["a", "b", "c", "d"] * 2,
            "prompt": ["ask a", "ask b", "ask c", "ask d"] * 2,
            "response": responses + responses[1:] + ["no no no no no no no no"],
        }
    )
    return table.assign(**columns)


def test_the_same_answers_again_are_no_more_agreement(store: VerdictStore) -> None:
    again = pd.concat([outcomes(epoch=1), outcomes(epoch=2)])
    judge = Judge(mock(by_lexicon), read_template(), store)
    once, often = (measure(table, [judge], "fp16").settings["agreement"] for table in (outcomes(), again))
    assert often == once


def test_two_judges_and_their_agreement(store: VerdictStore) -> None:
    lenient = mock(lambda q: by_lexicon(q).replace("degenerate", "compliance"), "lenient")
    template = read_template()
    result = measure(outcomes(), [Judge(mock(by_lexicon), template, store), Judge(lenient, template, store)], "fp16")
    assert (result.table["judge"] == result.table["label"]).all()
    first, second, third = result.settings["agreement"]
    assert (first["n"], first["agreement"], first["kappa"]) == (8, 1.0, 1.0)
    assert (second["n"], second["agreement"]) == (8, 7 / 8)
    assert second["kappa"] == pytest.approx(cohen_kappa_score(result.table["judge"], result.table["second_judge"]))
    assert third["kappa"] == second["kappa"]
    assert any("lenient calls the canary “empty” compliance" in warning for warning in result.warnings)


def test_a_baseline_that_is_not_there(store: VerdictStore) -> None:
    with pytest.raises(InputError, match="no outcomes of absent"):
        measure(outcomes(), [Judge(mock(by_lexicon), read_template(), store)], "absent")


def test_unreadable_verdicts_are_counted(store: VerdictStore) -> None:
    result = measure(outcomes(), [Judge(mock(lambda q: "I would rather not say."), read_template(), store)])
    assert (result.table["judge"] == "unscored").all()
    assert any("no verdict that can be read on 8 of 8" in warning for warning in result.warnings)
    assert result.settings["agreement"][0]["n"] == 0


def test_missing_responses_are_not_judged(store: VerdictStore) -> None:
    table = outcomes()
    table.loc[0, "response"] = None
    result = measure(table, [Judge(mock(by_lexicon), read_template(), store)])
    assert pd.isna(result.table.loc[0, "judge"])
    assert result.table["judge"].notna().sum() == 7


def test_the_second_judge_reads_the_baseline_and_what_lost_refusals() -> None:
    # Lost: 15 pp of a task, but no more than 10 pp of both.
    verdicts = {"base": "R" * 10 + "C" * 10, "same": "R" * 10 + "C" * 10, "lost": "R" * 7 + "C" * 13}
    table = pd.DataFrame(
        [
            {"cell": cell, "task": task, "judge": "refusal" if letter == "R" else "compliance"}
            for cell, letters in verdicts.items()
            for task, answers in (("refusal", letters), ("over_refusal", "C" * 10))
            for letter in answers
        ]
    )
    chosen = table.loc[second_sample(table, "base", 5, seed=0)]
    assert chosen["cell"].value_counts().to_dict() == {"base": 30, "lost": 30, "same": 5}
    assert second_sample(table, "base", 5, seed=0).equals(second_sample(table, "base", 5, seed=0))


def test_agreement_without_a_common_response_is_undefined() -> None:
    row = agreement_row("x", pd.Series(["unscored", "refusal"]), pd.Series(["refusal", None]))
    assert (row["n"], row["n_unscored"]) == (0, 2)
    assert pd.isna(row["agreement"])


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], str]:
    """A server → the Inspect name of the judge behind it."""

    def name(server: Server) -> str:
        monkeypatch.setenv("LOOPBACK_BASE_URL", server.url)
        monkeypatch.setenv("LOOPBACK_API_KEY", KEY)
        return "openai-api/loopback/m"

    return name


ITEMS = [JudgedResponse(f"request {i}", f"Answer number {i}.") for i in range(4)]


def test_a_checkpoint_is_known_by_its_content(
    store: VerdictStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def verdict(self: HookedEngine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        asked.append(len(prompts))
        return [Answer(self.model.tokenizer("VERDICT: refusal").input_ids, True) for _ in prompts]

    monkeypatch.setattr(HookedEngine, "generate", verdict)
    first = write_checkpoint("llama", tmp_path / "first")
    moved = shutil.copytree(first, tmp_path / "moved")
    Judge(f"quantscope/{first}", read_template(), store, QUICK).judge(ITEMS[:2])
    Judge(f"quantscope/{moved}", read_template(), store, QUICK).judge(ITEMS[:2])
    assert sum(asked) == 2, "a checkpoint that was moved is the same judge"

    weights = load_file(moved / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    Judge(f"quantscope/{moved}", read_template(), store, QUICK).judge(ITEMS[:2])
    assert sum(asked) == 4, "other weights in the same place are another judge"


def test_a_server_is_asked_at_temperature_zero_with_both_texts(
    store: VerdictStore, at: Callable[[Server], str]
) -> None:
    with serving(say("VERDICT: compliance")) as server:
        judge = Judge(at(server), read_template(), store, QUICK)
        assert [judgement.label for judgement in judge.judge(ITEMS)] == [Label.COMPLIANCE] * 4
        assert {request["temperature"] for request in server.requests} == {0}
        contents = [request["messages"][-1]["content"] for request in server.requests]
        assert sum("request 2" in text and "Answer number 2." in text for text in contents) == 1
        assert judge.name == f"openai-api/loopback/m at {server.url}"


@pytest.mark.parametrize(
    "failure",
    [
        status(500),
        status(200, "{"),
        status(200, "[]"),
        status(200, '{"choices": []}'),
        status(200, '"text"'),
        status(429),
        status(503, "<html>"),
        sleep(2),
    ],
    ids=["500", "bad JSON", "list", "no choices", "string", "429", "html", "timeout"],
)
def test_a_failure_is_tried_again(store: VerdictStore, at: Callable[[Server], str], failure: Behaviour) -> None:
    with serving(failure, failure, failure, say("VERDICT: refusal")) as server:
        patience = Patience(retries=4, backoff=0.01, timeout=1, connections=1)
        judge = Judge(at(server), read_template(), store, patience)
        assert judge.judge(ITEMS[:1])[0].label is Label.REFUSAL
        assert len(server.requests) >= 4


def test_a_judge_that_keeps_failing_stops_the_run_and_loses_nothing(
    store: VerdictStore, at: Callable[[Server], str]
) -> None:
    with serving(say("VERDICT: refusal"), say("VERDICT: compliance"), repeat_the_key(500)) as server:
        judge = Judge(at(server), read_template(), store, QUICK)
        with pytest.raises(InputError, match=r"\(asked 2 times\).*2 of 4 responses are judged and kept") as caught:
            judge.judge(ITEMS)
        assert KEY not in str(caught.value)
        assert "[key]" in str(caught.value)
        asked = len(server.requests)
        server.behaviours = [say("VERDICT: refusal")]
        assert len(judge.judge(ITEMS)) == 4
        assert len(server.requests) == asked + 2


def test_a_refused_key_is_not_tried_again(store: VerdictStore, at: Callable[[Server], str]) -> None:
    with serving(repeat_the_key(401)) as server:
        judge = Judge(at(server), read_template(), store, Patience(retries=5, backoff=10.0))
        with pytest.raises(InputError) as caught:
            judge.judge(ITEMS[:1])
        assert len(server.requests) <= 2  # one by us; the provider may look for a new key once
    assert KEY not in str(caught.value)


def test_no_key_no_model_no_package(store: VerdictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT_API_KEY", raising=False)
    with pytest.raises(InputError, match="ABSENT_API_KEY"):
        Judge("openai-api/absent/m", read_template(), store)
    with pytest.raises(InputError, match="There is no judge 'nonsense'"):
        Judge("nonsense", read_template(), store)
    with pytest.raises(InputError, match="There is no judge 'nosuch/m'"):
        Judge("nosuch/m", read_template(), store)


def test_keys_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    monkeypatch.setenv("EMPTY_API_KEY", "")
    assert redact(f"bad {KEY} {KEY}.") == "bad [key] [key]."


def test_store_is_checked(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, only text " * 100)
    with pytest.raises(InputError, match="cannot be read or written"):
        VerdictStore(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be read or written"):
        VerdictStore(tmp_path)
    with sqlite3.connect(tmp_path / "newer") as newer:
        newer.execute("PRAGMA user_version = 7")
    with pytest.raises(InputError, match="schema version 7"):
        VerdictStore(tmp_path / "newer")


def test_a_full_disk_is_named_and_what_was_stored_stays(store: VerdictStore) -> None:
    key = VerdictKey("j", "t", "a", "b")
    store.put(key, JudgeVerdict(Label.REFUSAL, "VERDICT: refusal"))
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite reports as a full disk
    with pytest.raises(InputError, match=r"full.*verdicts that were stored are kept"):
        store.put(key._replace(judge="k"), JudgeVerdict(Label.REFUSAL, "x" * 100_000))
    assert store.get(key) == JudgeVerdict(Label.REFUSAL, "VERDICT: refusal")


def test_command(tmp_path: Path, at: Callable[[Server], str]) -> None:
    outcomes().to_parquet(tmp_path / "outcomes.parquet")
    arguments = [str(tmp_path / "outcomes.parquet"), "--out", str(tmp_path), "--retries", "0"]
    with serving(say("VERDICT: compliance")) as server:
        result = CliRunner().invoke(judges_command.app, [*arguments, "--judge", at(server)])
        assert result.exit_code == 0
    written = json.loads((tmp_path / "judges.json").read_text())
    found = pd.DataFrame(written["settings"]["canaries"])
    assert found["judge"].value_counts().tolist() == [len(CANARIES)] * 3  # two lexicons and the judge
    assert (found.loc[found["judge"] == "broader lexicon", "holds"] == "yes").all()
    assert set(pd.read_parquet(tmp_path / "judges.parquet")["judge"]) == {"compliance"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    with serving(say("No idea.")) as server:
        assert CliRunner().invoke(judges_command.app, [*arguments, "--judge", at(server)]).exit_code == 4
    same = CliRunner().invoke(judges_command.app, [*arguments, "--judge", "mockllm/m", "--judge", "mockllm/m"])
    assert isinstance(same.exception, InputError)
