"""The behavioural runner on a random model: what the models see, the gate, the tasks, bad input."""

from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import anyio
import pandas as pd
import pytest
import torch
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ContentReasoning, GenerateConfig, get_model
from typer.testing import CliRunner

from interp.chat import encode, render
from interp.errors import InputError
from interp.generation import Answer
from interp.opening import load
from interp.quantize.gguf_f16 import write_f16
from probes.harness.prompts import builtin
from probes.labels.label import Label
from probes.refusal import __main__ as refusal_command
from probes.refusal import tasks as refusal_tasks
from probes.refusal.controls import again
from probes.refusal.engines import EngineSettings, HookedEngine
from probes.refusal.inspect_provider import CheckpointAPI
from probes.refusal.probe import build_tasks, measure
from probes.refusal.request_sets import WRAPPERS, prompt_sha256
from probes.refusal.run import BehaviourRun
from probes.refusal.settings import EngineName
from probes.refusal.stopped import Stopped
from probes.refusal.subjects import LocalSubject
from tests.writer_models import write_checkpoint


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("runner") / "base")


@pytest.fixture(scope="module")
def gguf(baseline: Path) -> Path:
    path = baseline.parent / "f16.gguf"
    write_f16(baseline, path)
    return path


def run_in(path: Path, names: Sequence[str] = ("refusal",), limit: int = 5, max_new_tokens: int = 6) -> BehaviourRun:
    return BehaviourRun(path, build_tasks(names, limit=limit), max_new_tokens, connections=16)


def local(path: Path, **settings: Any) -> LocalSubject:
    return LocalSubject(EngineSettings(str(path), **settings), batch_size=4)


def test_the_table_says_what_was_asked_and_answered(baseline: Path, gguf: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path, ["refusal", "over_refusal", "jailbreak"])
    result = measure(local(baseline), {"f16": local(gguf, like=str(baseline))}, run)
    table = result.table
    assert table.groupby(["cell", "task"]).size().to_dict() == {
        (cell, task): n
        for cell in ("baseline", "f16")
        for task, n in (("refusal", 5), ("over_refusal", 10), ("jailbreak", 15))
    }
    # The same weights in another file: the same answers.
    columns = [column for column in table if column != "cell"]
    sides = [table.loc[table["cell"] == cell, columns].reset_index(drop=True) for cell in ("baseline", "f16")]
    pd.testing.assert_frame_equal(*sides)

    model = load(baseline)
    asked = table[(table["cell"] == "baseline") & (table["task"] == "refusal")]
    assert set(asked["prompt"]) == set(builtin("harmful").take(5).instructions)
    for row in asked.itertuples():
        ids = encode(model.tokenizer, render(model.tokenizer, [row.prompt]).texts)[0]
        assert ids.count(model.tokenizer.bos_token_id) == 1
        assert (row.prompt_sha256, row.n_prompt_tokens) == (prompt_sha256(ids), len(ids))
        output = model.hf.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        assert row.response == model.tokenizer.decode(output, skip_special_tokens=True)
    assert (table["error"] == "").all()
    assert set(table.loc[table["task"] == "jailbreak", "category"]) == set(WRAPPERS)


def test_a_system_prompt_is_what_models_are_told_and_what_runs_record(baseline: Path, tmp_path: Path) -> None:
    told = replace(local(baseline), system="Be terse.")
    table = measure(told, {"same": told}, run_in(tmp_path, limit=2)).table
    made = load(baseline).tokenizer
    for row in table.itertuples():
        messages = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": row.prompt}]
        text = made.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert row.prompt_sha256 == prompt_sha256(encode(made, text)[0])
    assert "Be terse." in (tmp_path / "run.json").read_text()
    assert "system" not in local(baseline).describe()
    apis = [CheckpointAPI(str(baseline), system=system) for system in ("auto", "Be terse.")]
    assert apis[0].identity() != apis[1].identity()
    conversation = [ChatMessageSystem(content="Mine."), ChatMessageUser(content="x")]
    assert apis[1].rendered(conversation) == apis[0].rendered(conversation)


def test_nothing_is_written_outside_the_folder(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    measure(local(baseline), {"same": local(baseline)}, run_in(tmp_path / "run", limit=2))
    assert list(home.iterdir()) == []
    assert os.environ["XDG_DATA_HOME"] == str(home)
    assert capsys.readouterr().out == ""


def test_weights_are_freed_before_the_next_cell(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[HookedEngine]] = []
    alive: list[int] = []
    start = HookedEngine.__init__

    def counted(self: HookedEngine, settings: EngineSettings) -> None:
        gc.collect()
        alive.append(sum(engine() is not None for engine in opened))
        opened.append(weakref.ref(self))
        start(self, settings)

    monkeypatch.setattr(HookedEngine, "__init__", counted)
    measure(local(baseline), {"a": local(baseline), "b": local(baseline)}, run_in(tmp_path, limit=2))
    assert alive == [0, 0, 0]


def test_the_baseline_again_is_another_run(baseline: Path, tmp_path: Path) -> None:
    subject = local(baseline)
    repeat = again(subject)
    assert (repeat.batch_size, repeat.settings.threads) != (subject.batch_size, torch.get_num_threads())  # type: ignore[attr-defined]
    found = measure(subject, {"same": subject}, run_in(tmp_path), repeat=repeat).settings["determinism"]
    assert (found["n"], found["n_flips"], found["conditions"]["order"]) == (5, 0, "shuffled")
    assert found["flip_rate_high"] > 0.4, "five prompts prove little"


def test_self_flips_count_flips(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose answer depends on the batch size is caught."""
    subject = local(baseline)
    refusing = load(baseline).tokenizer("I can't help you", add_special_tokens=False).input_ids

    def fickle(self: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        return [Answer(refusing if self.threads is None else [], True) for _ in prompts]

    monkeypatch.setattr("probes.refusal.engines.HookedEngine.generate", fickle)
    repeat = replace(subject, settings=replace(subject.settings, threads=1))
    found = measure(subject, {"same": subject}, run_in(tmp_path), repeat=repeat).settings["determinism"]
    assert (found["n"], found["n_flips"], found["n_responses_changed"], found["flip_rate"]) == (5, 5, 5, 1.0)


def test_a_full_disk_stops_the_run_resumably(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = local(baseline)
    with monkeypatch.context() as patch:
        patch.setattr(
            "probes.refusal.engines.HookedEngine.generate", Mock(side_effect=OSError(errno.ENOSPC, "No space left"))
        )
        with pytest.raises(InputError, match=r"(?s)refusal on .* stopped: No space left. Nothing was finished"):
            measure(subject, {"same": subject}, run_in(tmp_path))
    assert len(measure(subject, {"same": subject}, run_in(tmp_path)).table) == 10


class TestGate:
    def test_another_engine(self, baseline: Path, gguf: Path, tmp_path: Path) -> None:
        cell = local(gguf, engine=EngineName.LLAMA_CPP, like=str(baseline))
        with pytest.raises(InputError, match=r"runs on llama\.cpp, the baseline on hooked"):
            measure(local(baseline), {"q": cell}, run_in(tmp_path))
        assert not (tmp_path / "cells").exists()

    def test_another_engine_on_insistence(self, baseline: Path, gguf: Path, tmp_path: Path) -> None:
        cell = local(gguf, engine=EngineName.LLAMA_CPP, like=str(baseline))
        found = measure(local(baseline), {"q": cell}, run_in(tmp_path), control=cell)
        drift = found.settings["engine_control"]
        assert drift["n"] == 5
        assert 0 < drift["largest_logit_difference"] < 0.1, "float16 sums against float32 ones"
        assert set(found.table["engine"]) == {"hooked", "llama.cpp"}
        marks = found.table.groupby("cell")["across_engines"].first().to_dict()
        assert marks == {"baseline": "", "q": "llama.cpp; baseline hooked", "control": "llama.cpp; baseline hooked"}
        assert [said for said in found.warnings if "different engines" in said] == [
            "q: answered by different engines (llama.cpp; baseline hooked), so its change is theirs as much as the "
            "quantization's"
        ]

    def test_another_template(self, baseline: Path, tmp_path: Path) -> None:
        template = tmp_path / "template.jinja"
        template.write_text("{{ messages[0]['content'] }} Answer:")
        cell = replace(local(baseline), template=str(template))
        with pytest.raises(InputError, match=r"5 of 5 prompts have other tokens .* Answer:"):
            measure(local(baseline), {"q": cell}, run_in(tmp_path))

    def test_another_tokenizer(self, baseline: Path, tmp_path: Path) -> None:
        description = json.loads((baseline / "tokenizer.json").read_text())
        description["model"]["merges"] = []
        other = tmp_path / "other"
        other.mkdir()
        for file in baseline.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        (other / "tokenizer.json").write_text(json.dumps(description))
        with pytest.raises(InputError, match="5 of 5 prompts have other tokens"):
            measure(local(baseline), {"q": local(other)}, run_in(tmp_path / "run"))

    def test_a_prompt_that_leaves_no_room(self, baseline: Path, tmp_path: Path) -> None:
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("short\n" + "long " * 400)
        run = BehaviourRun(tmp_path / "run", build_tasks(["refusal"], str(prompts)), 6, connections=4)
        with pytest.raises(InputError, match=r"'.*long long.* tokens for baseline.*never truncated"):
            measure(local(baseline), {"q": local(baseline)}, run)

    def test_another_run_in_the_folder(self, baseline: Path, tmp_path: Path) -> None:
        measure(local(baseline), {"q": local(baseline)}, run_in(tmp_path, limit=2))
        with pytest.raises(InputError, match=r"other settings .tasks, max_new_tokens differ"):
            measure(local(baseline), {"q": local(baseline)}, run_in(tmp_path, limit=3, max_new_tokens=7))


class TestProvider:
    def api(self, baseline: Path, answer: str, **settings: Any) -> CheckpointAPI:
        api = CheckpointAPI(str(baseline), **settings)

        class Fixed(HookedEngine):
            def __init__(self) -> None:
                """Without a model."""

            def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
                tokens = api.tokenizer(answer, add_special_tokens=False).input_ids
                return [Answer(tokens[:max_new_tokens], len(tokens) <= max_new_tokens) for _ in prompts]

        api._engine = Fixed()
        return api

    def ask(self, api: CheckpointAPI, *messages: Any, **config: Any) -> Any:
        return anyio.run(api.generate, list(messages), [], "auto", GenerateConfig(**{"max_tokens": 64, **config}))

    def test_thinking_is_separated_and_kept(self, baseline: Path, tmp_path: Path) -> None:
        template = tmp_path / "think.jinja"
        template.write_text(
            "{{ messages[0]['content'] }}|{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
        )
        thoughtful = self.api(baseline, "Is it bad?</think>I can't.", template=str(template), thinking=True)
        output = self.ask(thoughtful, ChatMessageUser(content="Q"))
        reasoning, text = output.choices[0].message.content
        assert isinstance(reasoning, ContentReasoning)
        assert (reasoning.reasoning, text.text, output.completion) == ("Is it bad?", "I can't.", "I can't.")
        plain = self.api(baseline, "I can't.", template=str(template))
        assert self.ask(plain, ChatMessageUser(content="Q")).choices[0].message.content == "I can't."

    def test_what_the_model_saw_is_recorded(self, baseline: Path) -> None:
        api = self.api(baseline, "Yes.")
        messages = ChatMessageSystem(content="Be kind."), ChatMessageUser(content="Q")
        output = self.ask(api, *messages, max_tokens=2)
        record = output.metadata
        text = api.tokenizer.decode(record["prompt_token_ids"])
        assert text == "<s><|system|>Be kind.<|end|><|user|>Q<|end|><|assistant|>"
        assert (record["engine"], record["greedy"], record["max_new_tokens"]) == ("hooked", True, 2)
        assert (record["n_tokens"], output.usage.output_tokens, output.stop_reason) == (2, 2, "max_tokens")

    def test_stop_sequences(self, baseline: Path) -> None:
        output = self.ask(self.api(baseline, "One. Two."), ChatMessageUser(content="Q"), stop_seqs=["Two", "."])
        assert (output.completion, output.stop_reason) == ("One", "stop")

    @pytest.mark.parametrize(
        "setting",
        [
            {"temperature": 0.7},
            {"num_choices": 3},
            {"logprobs": True},
            {"frequency_penalty": 0.5},
            {"presence_penalty": -1.0},
            {"logit_bias": {7: 5.0}},
            {"best_of": 2},
        ],
    )
    def test_sampling_is_refused(self, baseline: Path, setting: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="greedy decoding"):
            self.ask(self.api(baseline, "Yes."), ChatMessageUser(content="Q"), **setting)

    @pytest.mark.parametrize("answer", ["", "x" * 100_000, "\x00\x1b[31m\u202e<script>[bold]</script>\x07"])
    def test_any_text_survives(self, baseline: Path, answer: str) -> None:
        output = self.ask(self.api(baseline, answer), ChatMessageUser(content="Q"), max_tokens=200_000)
        assert output.completion == answer

    def test_inspect_finds_it(self, baseline: Path) -> None:
        model = get_model(f"quantscope/{baseline}", memoize=False, batch_size=3)
        assert isinstance(model.api, CheckpointAPI)
        assert model.api.max_connections() == 12

    def test_any_inspect_command_runs_the_tasks(self, baseline: Path, tmp_path: Path) -> None:
        inspect = Path(sys.executable).with_name("inspect")
        model = ["--model", f"quantscope/{baseline}", "-M", "batch_size=2", "--max-tokens", "4"]
        command = [inspect, "eval", f"{refusal_tasks.__file__}@refusal", *model, "--limit", "2", "--display", "plain"]
        environment = os.environ | {
            "XDG_DATA_HOME": str(tmp_path),
            "INSPECT_LOG_DIR": str(tmp_path / "logs"),
            "INSPECT_EVAL_CTL_SERVER": "false",
        }
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert len(list((tmp_path / "logs").glob("*_refusal_*.eval"))) == 1


class TestQuestions:
    def test_truthfulqa_csv(self, tmp_path: Path) -> None:
        file = tmp_path / "TruthfulQA.csv"
        file.write_text(
            "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
            'A,Myths,Do fans kill?,"No, they cool",No; Nope,Yes; Only at night,x\n'
        )
        (sample,) = build_tasks(["truthfulness"], questions={"truthfulness": str(file)})["truthfulness"].dataset
        assert sample.choices is not None
        assert set(sample.choices) == {"No, they cool", "Yes", "Only at night"}
        assert sample.choices["ABC".index(str(sample.target))] == "No, they cool"

    def test_truthfulqa_mc(self, tmp_path: Path) -> None:
        file = tmp_path / "mc_task.json"
        file.write_text(json.dumps([{"question": "Q?", "mc1_targets": {"right": 1, "wrong": 0, "worse": 0}}] * 1))
        (sample,) = build_tasks(["truthfulness"], questions={"truthfulness": str(file)})["truthfulness"].dataset
        assert sample.choices is not None
        assert sample.choices["ABC".index(str(sample.target))] == "right"

    def test_bbq(self, tmp_path: Path) -> None:
        file = tmp_path / "Age.jsonl"
        record = {
            "example_id": 0, "question_polarity": "neg", "context_condition": "ambig", "category": "Age",
            "context": "A grandfather and his grandson came.", "question": "Who forgot?",
            "ans0": "The grandfather", "ans1": "The grandson", "ans2": "Can't be determined", "label": 2,
        }  # fmt: skip
        file.write_text(json.dumps(record) + "\n")
        (sample,) = build_tasks(["bias"], questions={"bias": str(file)})["bias"].dataset
        assert (sample.target, sample.metadata["category"]) == ("C", "ambig")  # type: ignore[index]
        assert sample.input == "A grandfather and his grandson came. Who forgot?"

    @pytest.mark.parametrize("text", ["", "{}\n", "not json\n"])
    def test_other_layouts_are_refused(self, tmp_path: Path, text: str) -> None:
        file = tmp_path / "x.jsonl"
        file.write_text(text)
        with pytest.raises(
            InputError,
            match=r"x\.jsonl( does not have| holds no questions|, line 1, is not valid JSON)",
        ):
            build_tasks(["bias"], questions={"bias": str(file)})

    @pytest.mark.parametrize("label", [-1, 3, 1.5, float("inf"), "1", None])  # −1 was the last letter, inf a traceback
    def test_a_label_that_is_none_of_the_answers_is_refused(self, tmp_path: Path, label: object) -> None:
        record = dict.fromkeys(("context", "question", "context_condition", "question_polarity", "category"), "x")
        file = tmp_path / "x.jsonl"
        file.write_text(json.dumps(record | {"ans0": "a", "ans1": "b", "ans2": "c", "label": label}))
        with pytest.raises(InputError, match="does not have the public layout"):
            build_tasks(["bias"], questions={"bias": str(file)})

    def test_they_are_scored_and_labelled(self, baseline: Path, tmp_path: Path) -> None:
        file = tmp_path / "mc_task.json"
        file.write_text(json.dumps([{"question": f"Q{i}?", "mc1_targets": {"a": 1, "b": 0}} for i in range(3)]))
        tasks = build_tasks(["truthfulness"], questions={"truthfulness": str(file)})
        run = BehaviourRun(tmp_path / "run", tasks, 4, connections=4)
        table = measure(local(baseline), {"q": local(baseline)}, run).table
        assert set(table["score"]) <= {0.0, 1.0}
        assert set(table["task"]) == {"truthfulness"}


def test_command(baseline: Path, tmp_path: Path) -> None:
    common = [
        "--baseline",
        str(baseline),
        "--quantized",
        f"q={baseline}",
        "--out",
        str(tmp_path / "out"),
        "--limit",
        "2",
    ]
    result = CliRunner().invoke(refusal_command.app, [*common, "--max-tokens", "4", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["settings"]["determinism"]["n"], len(document["rows"])) == (6, 12)
    written = pd.read_parquet(tmp_path / "out" / "refusal.parquet")
    assert list(written["response"]) == [row["response"] for row in document["rows"]]


def test_nothing_measured_has_its_exit_code(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.refusal.inspect_eval.classify", lambda response: Label.UNSCORED)
    paths = ["--baseline", str(baseline), "--quantized", f"q={baseline}", "--out", str(tmp_path)]
    settings = ["--task", "refusal", "--limit", "2", "--max-tokens", "2", "--no-determinism"]
    assert CliRunner().invoke(refusal_command.app, [*paths, *settings]).exit_code == 4


def test_a_cell_is_added_to_a_finished_run(baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure(local(baseline), {"a": local(baseline)}, run_in(tmp_path, limit=3)).table
    asked: list[int] = []
    generate = HookedEngine.generate

    def counted(self: HookedEngine, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        asked.append(len(prompts))
        return generate(self, prompts, max_new_tokens)

    monkeypatch.setattr(HookedEngine, "generate", counted)
    both = {"a": local(baseline), "b": local(baseline, dtype="bfloat16")}
    table = measure(local(baseline), both, run_in(tmp_path, limit=3)).table
    assert sum(asked) == 3, "only the new cell is asked"
    pd.testing.assert_frame_equal(table[table["cell"] != "b"], first)
    with pytest.raises(InputError, match=r"other settings .b differ"):
        measure(local(baseline), {"b": local(baseline)}, run_in(tmp_path, limit=3))
    assert set(json.loads((tmp_path / "run.json").read_text())["cells"]) == {"baseline", "a", "b"}


def test_no_such_task() -> None:
    with pytest.raises(InputError, match="no task 'nothing'"):
        build_tasks(["nothing"])
    with pytest.raises(InputError, match="--bias"):
        build_tasks(["bias"])


@pytest.mark.parametrize("engine", [EngineName.HOOKED, EngineName.LLAMA_CPP])
def test_an_engine_that_is_stopped_ends_what_it_computes(baseline: Path, gguf: Path, engine: EngineName) -> None:
    path = baseline if engine is EngineName.HOOKED else gguf
    opened = EngineSettings(str(path), engine, like=str(baseline)).open()
    assert len(opened.generate([[5, 6]], 2)) == 1
    opened.stop()
    with pytest.raises(Stopped):
        opened.generate([[5, 6]], 2)


def test_the_baseline_again_keeps_its_threads(baseline: Path) -> None:
    subject = local(baseline, threads=3)
    repeat = again(subject)
    assert isinstance(repeat, LocalSubject)
    assert (repeat.batch_size, repeat.settings) == (1, subject.settings)
