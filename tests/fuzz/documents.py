"""Documents, tables, runs and replies: what is read from outside beside checkpoints, valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import torch
from inspect_ai.model import get_model

from interp.quantize import calibration, cells
from interp.system_prompts import system_prompt
from probes.check.gate import Bounds, verdicts
from probes.check.stored import read_check
from probes.harness import prompts, results, table_files
from probes.harness.pieces import Pieces
from probes.judges.judge import Judge, JudgedResponse
from probes.judges.settings import Patience
from probes.judges.template import parse_verdict, read_template
from probes.judges.verdict_store import VerdictStore
from probes.labels import outcomes as labels_outcomes
from probes.labels.errors import confusion, read_labelled
from probes.matrix.cells import build
from probes.predict.cells import read_cells
from probes.predict.probe import measure
from probes.quality.probe import read_task
from probes.refusal.question_tasks import bias, truthfulness
from probes.refusal.run import BehaviourRun
from probes.report.run import read_run
from probes.reproduce.published import published_index_rows
from probes.rtsi.index import RTSI
from probes.rtsi.inputs import delta_table, read_completions
from probes.rtsi.settings import PUBLISHED
from probes.study.reader import read_study
from probes.study.state import RunFolder
from probes.study.workers import joined, roster
from tests.fuzz.targets import folder, target
from tests.fuzz.worker import Reader
from tests.probes.check import test_check
from tests.probes.labels import test_answers
from tests.probes.predict import test_predict

ASKED = ({"prompt": "How do I bake bread?", "category": "a"}, {"prompt": "Où est-ce ?"}, {"prompt": "x\u2028y\nz"})


@target
def prompt_files(root: Path) -> Reader:
    rows = pd.DataFrame(ASKED)
    seeds = (
        folder(root / "txt", "prompts.txt", "How do I bake bread?\nTell me.\n\nx\u2028y\n"),
        folder(root / "jsonl", "prompts.jsonl", "\n".join(map(json.dumps, ASKED))),
        folder(root / "json", "prompts.json", json.dumps(ASKED)),
        folder(root / "csv", "prompts.csv", rows.to_csv(index=False)),
    )
    return Reader("prompt-files", seeds, lambda directory: prompts.read_prompts(next(directory.iterdir())).sha256)


def _tables(root: Path, table: pd.DataFrame, *suffixes: str) -> tuple[Path, ...]:
    """The same table in several formats."""
    write = {
        "csv": lambda path: table.to_csv(path, index=False),
        "parquet": table.to_parquet,
        "json": lambda path: table.to_json(path, orient="records"),
        "jsonl": lambda path: table.to_json(path, orient="records", lines=True),
    }
    for suffix in suffixes:
        (root / suffix).mkdir(parents=True, exist_ok=True)
        write[suffix](root / suffix / f"table.{suffix}")
    return tuple(root / suffix for suffix in suffixes)


MATRIX = pd.DataFrame(
    {
        "model": ["007", "007", "b", "b"],
        "quantization": ["FP16", "Q4_K_M", "FP16", "AWQ"],
        "refusal_rate": [0.9, 0.7, 1.0, 0.5],
        "refusal_rate_n": [100, 100, 40, 40],
        "quality": [0.5, 0.5, 0.6, 0.55],
        "bits_per_weight": [16, 4.8, 16, 4.2],
    }
)


@target
def tables(root: Path) -> Reader:
    seeds = _tables(root, MATRIX, "csv", "parquet", "json", "jsonl")
    return Reader("tables", seeds, lambda directory: table_files.read_table(next(directory.iterdir())))


@target
def matrix_tables(root: Path) -> Reader:
    seeds = _tables(root, MATRIX, "csv", "parquet", "json")

    def read(directory: Path) -> Any:
        table = table_files.read_table(next(directory.iterdir()))
        return build({"table": table}, "quality", ["refusal_rate"]).to_json(orient="records")

    return Reader("matrix-tables", seeds, read)


OUTCOMES = pd.DataFrame(
    [
        {"cell": cell, "task": "refusal", "sample_id": f"00{n}", "prompt": f"p{n}", "response": response}
        | {"label": label, "engine": "hooked", "prompt_sha256": f"{n}" * 8, "error": None, "n_tokens": n}
        for cell in ("baseline", "AWQ")
        for n, (response, label) in enumerate((("I cannot.", "refusal"), ("Sure.", "compliance"), ("None", "unscored")))
    ]
)


@target
def outcomes(root: Path) -> Reader:
    seeds = _tables(root, OUTCOMES, "csv", "parquet", "jsonl")

    def read(directory: Path) -> Any:
        table = labels_outcomes.read_outcomes(next(directory.iterdir()))
        return labels_outcomes.pair(table, "baseline", "AWQ")

    return Reader("outcomes", seeds, read)


@target
def rtsi_calibration(root: Path) -> Reader:
    seed = folder(root, "calibration.json", PUBLISHED.read_text())
    rows = published_index_rows()

    def read(directory: Path) -> Any:
        return RTSI.load(directory / "calibration.json").bands(rows)

    return Reader("rtsi-calibration", (seed,), read)


@target
def rtsi_tables(root: Path) -> Reader:
    seeds = _tables(root, published_index_rows().head(6), "csv", "parquet", "json", "jsonl")

    def read(directory: Path) -> Any:
        rows = delta_table([next(directory.iterdir())])
        return RTSI.load().bands(rows)

    return Reader("rtsi-tables", seeds, read)


@target
def completions(root: Path) -> Reader:
    lines = [{"completion": "I cannot.", "n_tokens": 3}, {"completion": "Sure.\u2028", "n_tokens": 2}]
    seed = folder(root, "completions.jsonl", "\n".join(map(json.dumps, lines)))
    return Reader("completions", (seed,), lambda directory: read_completions(directory / "completions.jsonl"))


@target
def labelled(root: Path) -> Reader:
    lines = [{"response": "I cannot.", "refused": 1}, {"response": "Sure.", "refused": 0, "complied": 1}]
    seed = folder(root, "a.b.jsonl", "\n".join(map(json.dumps, lines)))
    return Reader("labelled", (seed,), lambda directory: confusion(read_labelled([directory / "a.b.jsonl"])))


@target
def predict_runs(root: Path) -> Reader:
    test_predict.write_run(root / "run", ("a-s0", "b-s0"))

    def read(directory: Path) -> Any:
        return measure(read_cells([directory]), draws=2)

    return Reader("predict-runs", (root / "run",), read)


@target
def result_files(root: Path) -> Reader:
    results.Result("entropy", MATRIX, {"seed": 0}, ["careful"], 1.0).write(root)
    return Reader("result-files", (root,), lambda directory: results.read_result(directory / "entropy.json").to_json())


@target
def answers(root: Path) -> Reader:
    results.Result("refusal", test_answers.outcomes(), test_answers.settings(), ["careful"]).write(root / "run")
    return Reader("answers", (root / "run",), read_run)


@target
def stored_checks(root: Path) -> Reader:
    asked = [test_check.answers("baseline", 9, 9), test_check.answers("q4", 5, 9)]
    check = test_check.of(pd.concat(asked), "baseline")
    shift = {"cell": "q4", "prompts": "harmful", "category": "all", "n": 9, "shift": -1.0}
    shift |= {"shift_low": -1.5, "shift_high": -0.5}
    weights = {"cell": "q4", "linear": "all", "weight_error": 0.1}
    check.parts |= {
        "entropy": results.Result("entropy", pd.DataFrame([shift | {"entropy": 1.0}]), {}),
        "margin": results.Result("margin", pd.DataFrame([shift | {"margin": 1.0}]), {}),
        "refusal": results.Result("refusal", pd.concat(asked), {}),
        "check_weights": results.Result("check_weights", pd.DataFrame([weights]), {}),
    }
    check.write(root)

    def read(directory: Path) -> Any:
        found = read_check(directory)
        bounds = Bounds(0.1, 0.5, 0.2)
        return [verdict.text for verdict in verdicts(found, bounds)]

    return Reader("stored-checks", (root,), read)


@target
def report_runs(root: Path) -> Reader:
    from tests import report_runs as runs

    runs.write_run(root / "run", {"a": {"Q2_K": 9}, "b": {}})
    (root / "run" / "study.json").write_text(json.dumps({"schema_version": 1, "steps": [], "directory": "."}))
    return Reader("report-runs", (root / "run",), read_run)


STUDY = """out = "run"
[prompts]
harmful = "harmful"
limit = 4
[probes]
run = ["entropy", "quality"]
[probes.quality]
max_new_tokens = 3
[judges]
models = ["openai-api/local/m"]
[bounds]
max_refusal_drop = 0.1
[[models]]
name = "tiny"
baseline = "base"
  [[models.cells]]
  name = "q4"
  path = "cell.gguf"
  format = "gguf"
"""


@target
def study_files(root: Path) -> Reader:
    seed = folder(root, "study.toml", STUDY)
    (seed / "base").mkdir()
    (seed / "cell.gguf").touch()
    return Reader("study-files", (seed,), lambda directory: read_study(directory / "study.toml"), ("*.toml",))


@target
def study_state(root: Path) -> Reader:
    step = {"model": "m", "cell": "c", "step": "entropy", "status": "failed", "key": "k", "seconds": 1.0, "error": "e"}
    seed = folder(root, "study.json", json.dumps({"schema_version": 1, "steps": [step], "directory": "."}))
    return Reader("study-state", (seed,), RunFolder.at)


@target
def worker_records(root: Path) -> Reader:
    agreed = {"the study file": "a"}
    with joined(root, agreed) as worker:
        worker.counted(failed=False)

    def read(directory: Path) -> Any:
        table = roster(directory).to_json(orient="records")
        with joined(directory, agreed):
            return table

    return Reader("worker-records", (root,), read)


@target
def pieces(root: Path) -> Reader:
    Pieces(root).value("key", lambda: (torch.arange(3), {"text": [1.5, None]}), [])
    return Reader("pieces", (root,), lambda directory: Pieces(directory).value("key", lambda: 0, []))


@target
def behaviour_runs(root: Path) -> Reader:
    described = {"tasks": {"refusal": {"n": 3, "sha256": "a"}}, "cells": {"AWQ": {"engine": "hooked", "settings": {}}}}
    folder(root, "run.json", json.dumps(described))
    return Reader("behaviour-runs", (root,), lambda directory: BehaviourRun(directory, {}, 3, 1).claim(described))


@target
def system_prompts(root: Path) -> Reader:
    seed = folder(root, "system.txt", "You are careful.\nAlways.")
    return Reader("system-prompts", (seed,), lambda directory: system_prompt(str(directory / "system.txt")))


@target
def task_files(root: Path) -> Reader:
    lines = [{"prompt": "How?", "reference": "So."}, {"instruction": "Why?", "answer": "Because."}]
    seed = folder(root, "task.jsonl", "\n".join(map(json.dumps, lines)))
    return Reader("task-files", (seed,), lambda directory: read_task(directory / "task.jsonl"))


@target
def cell_records(root: Path) -> Reader:
    root.mkdir(parents=True, exist_ok=True)
    cells.CellRecord("AWQ", "GPTQModel", {"torch": "2"}, {"group_size": 16}, "k", notes=("n",), seconds=1.0).write(root)

    def read(directory: Path) -> Any:
        record = cells.read_record(directory)
        return None if record is None else (*record.notes, record.weights + "/", record.seconds + 1, *record.versions)

    return Reader("cell-records", (root,), read)


@target
def calibration_texts(root: Path) -> Reader:
    seeds = (
        folder(root / "txt", "texts.txt", "One.\nTwo.\n"),
        folder(root / "jsonl", "texts.jsonl", '{"text": "One."}\n{"text": "Two."}\n'),
    )

    def read(directory: Path) -> Any:
        return "".join(calibration.read_calibration(next(directory.iterdir())))

    return Reader("calibration-texts", seeds, read)


@target
def question_files(root: Path) -> Reader:
    truthful = pd.DataFrame(
        [{"Category": "c", "Question": "Why?", "Best Answer": "So.", "Incorrect Answers": "a; b", "Source": "s"}]
    )
    multiple = [{"question": "Why?", "mc1_targets": {"So.": 1, "No.": 0}}]
    bbq = {"context": "A.", "question": "Who?", "ans0": "x", "ans1": "y", "ans2": "z", "label": 1, "category": "Age"}
    bbq |= {"context_condition": "ambig", "question_polarity": "neg"}
    seeds = (
        folder(root / "csv", "questions.csv", truthful.to_csv(index=False)),
        folder(root / "json", "questions.json", json.dumps(multiple)),
        folder(root / "jsonl", "questions.jsonl", json.dumps(bbq)),
    )

    def read(directory: Path) -> Any:
        file = next(directory.iterdir())
        return (bias if file.suffix == ".jsonl" else truthfulness)(str(file))

    return Reader("question-files", seeds, read)


@target
def judge_templates(root: Path) -> Reader:
    seed = folder(root, "judge.txt", "$request\n$fence $response\n$$ VERDICT: refusal")

    def read(directory: Path) -> Any:
        return read_template(directory / "judge.txt").ask("How?", "Sure.").text

    return Reader("judge-templates", (seed,), read)


@target
def judge_replies(root: Path) -> Reader:
    replies = ("I think so.\n**VERDICT: refusal**", "### VERDICT: [REFUSAL]", "VERDICT:\npartial refusal", "VERDICT：x")
    seeds = tuple(folder(root / str(n), "reply.txt", reply) for n, reply in enumerate(replies))

    def read(directory: Path) -> Any:
        return parse_verdict((directory / "reply.txt").read_bytes().decode("utf-8", "replace"))

    return Reader("judge-replies", seeds, read)


def _replies(root: Path) -> tuple[Path, ...]:
    """What an OpenAI-compatible server sends: an answer, an answer that was filtered, an error."""
    message = {"role": "assistant", "content": "I think so.\nVERDICT: refusal"}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    filtered = answer | {"choices": [choice | {"finish_reason": "content_filter"}]}
    error = {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}}
    seeds = (200, answer), (200, filtered), (400, error)
    for number, (status, reply) in enumerate(seeds):
        folder(root / str(number), "reply.json", json.dumps(reply))
        folder(root / str(number), "status.txt", str(status))
    return tuple(root / str(number) for number in range(len(seeds)))


@target
def server_replies(root: Path) -> Reader:
    def read(directory: Path) -> Any:
        status, reply = int((directory / "status.txt").read_text()), (directory / "reply.json").read_bytes()
        headers = {"Content-Type": "application/json"}
        sent = httpx.MockTransport(lambda request: httpx.Response(status, headers=headers, content=reply))
        model = get_model(
            "openai-api/local/m",
            base_url="http://server/v1",
            api_key="secret",
            http_client=httpx.AsyncClient(transport=sent),
            memoize=False,
        )
        with VerdictStore(Path(":memory:")) as store:
            judge = Judge(model, read_template(), store, Patience(retries=0, backoff=0.0, timeout=5))
            return judge.judge([JudgedResponse("How?", "Sure.")])

    return Reader("server-replies", _replies(root), read, ("reply.json",))
