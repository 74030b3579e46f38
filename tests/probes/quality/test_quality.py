from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from interp import load
from interp.chat import render
from interp.errors import InputError
from interp.generation import complete
from interp.model import HookedModel
from probes.harness.prompts import PromptSet
from probes.harness.results import Result
from probes.labels.degenerate import repetition_rate
from probes.matrix.rows import quality_table
from probes.quality import __main__ as quality_command
from probes.quality.probe import Task, default_task, measure, organism_task, read_task, text_rows
from probes.quality.text_metrics import Encoder
from tests.tiny_models import TEXTS

TASK = Task("tiny", tuple(TEXTS[:3]), ("mix flour and water", "no", "a red maple leaf"))


@pytest.fixture(scope="module")
def baseline(tiny: Callable[[str], Path]) -> HookedModel:
    return load(tiny("llama"))


@pytest.fixture(scope="module")
def damaged(tiny: Callable[[str], Path]) -> HookedModel:
    """Other weights, made in memory."""
    generator = torch.Generator().manual_seed(0)
    return in_memory(tiny("llama"), lambda weight: weight + 0.3 * torch.randn(weight.shape, generator=generator))


def in_memory(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> HookedModel:
    model = load(path)
    for parameter in model.hf.parameters():
        parameter.data = change(parameter.data)
    return HookedModel(model.hf, model.tokenizer, model.architecture)


@pytest.fixture(scope="module")
def result(baseline: HookedModel, damaged: HookedModel) -> Result:
    return measure(baseline, {"same": baseline_again(baseline), "damaged": damaged}, TASK, max_new_tokens=8)


def baseline_again(model: HookedModel) -> HookedModel:
    assert model.checkpoint is not None
    return load(model.checkpoint.path)


def value(table: pd.DataFrame, cell: str, metric: str, against: str) -> float:
    found = table[(table["cell"] == cell) & (table["metric"] == metric) & (table["against"] == against)]
    assert len(found) == 1
    return float(found["value"].iloc[0])


def test_without_references_quality_is_against_the_baselines_own_answers(
    baseline: HookedModel, damaged: HookedModel
) -> None:
    """Perplexity, KL and flips are then of those answers, as `complete` gives them."""
    cells = {"same": baseline_again(baseline), "damaged": damaged}
    found = measure(baseline, cells, Task("own", TASK.requests, None), max_new_tokens=8)
    own = tuple(answer.text for answer in complete(baseline, render(baseline.tokenizer, TASK.requests).texts, 8))
    given = measure(baseline, cells, Task("given", TASK.requests, own), max_new_tokens=8)
    assert set(found.table["against"]) == {"text", "baseline", ""}
    rest = given.table[given.table["against"] != "reference"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.table, rest)
    assert found.settings["text"] == "the baseline's own answers"
    matrix = quality_table(found.table).set_index("cell")
    assert set(matrix["quality_metric"]) == {"bertscore_f1 against the baseline's own answers"}
    assert matrix.loc["same", "quality_delta"] == pytest.approx(0, abs=1e-6)
    assert matrix.loc["damaged", "quality_delta"] == value(found.table, "damaged", "bertscore_f1", "baseline") - 1
    assert matrix.loc["damaged", "kl_mean"] == value(found.table, "damaged", "kl_mean", "baseline")


def test_only_an_organism_is_asked_the_organisms_task(baseline: HookedModel) -> None:
    task = default_task(baseline, PromptSet("mine", ("one", "two", "three", "four")), 2)
    assert (task.requests, task.references) == (("one", "three"), None)


def test_an_identical_cell_is_identical(result: Result) -> None:
    table = result.table
    for metric in ("kl_mean", "kl_p99", "top1_flips"):
        assert value(table, "same", metric, "baseline") == pytest.approx(0, abs=1e-9)
    for metric in ("bertscore_f1", "coherence", "exact_match"):
        assert value(table, "same", metric, "baseline") == pytest.approx(1)
    for metric, against in (("perplexity", "text"), ("rouge_l", "reference"), ("coherence", "reference")):
        assert value(table, "same", metric, against) == pytest.approx(value(table, "baseline", metric, against))


def test_a_damaged_cell_is_seen_by_every_distance(result: Result) -> None:
    table = result.table
    assert value(table, "damaged", "kl_mean", "baseline") > 0.01
    assert value(table, "damaged", "kl_p99", "baseline") > value(table, "damaged", "kl_mean", "baseline")
    assert value(table, "damaged", "top1_flips", "baseline") > 0
    assert value(table, "damaged", "bertscore_f1", "baseline") < 1


def test_perplexity_of_the_references_after_their_requests(result: Result, baseline: HookedModel) -> None:
    losses: list[float] = []
    for request, reference in zip(TASK.requests, TASK.references, strict=True):
        prompt = baseline.tokenizer.apply_chat_template(
            [{"role": "user", "content": request}], add_generation_prompt=True, return_dict=True
        ).input_ids
        answer = baseline.tokenizer(reference, add_special_tokens=False).input_ids
        ids = torch.tensor([[*prompt, *answer]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        losses += [float(baseline.hf(ids, labels=labels).loss)] * len(answer)
    expected = torch.tensor(losses, dtype=torch.float64).mean().exp()
    assert value(result.table, "baseline", "perplexity", "text") == pytest.approx(float(expected), rel=1e-5)
    assert result.settings["n_tokens"] == len(losses)


def test_outputs_are_the_models_greedy_answers(result: Result, damaged: HookedModel) -> None:
    from interp.chat import render

    outputs = [c.text for c in complete(damaged, render(damaged.tokenizer, TASK.requests).texts, 8)]
    rates = [rate for rate in map(repetition_rate, outputs) if rate == rate]
    found = result.table[(result.table["cell"] == "damaged") & (result.table["metric"] == "repetition_rate")].iloc[0]
    assert found["n"] == len(rates)
    if rates:
        assert found["value"] == pytest.approx(sum(rates) / len(rates))
    else:
        assert found["reason"] == "no text is long enough"


def test_a_text_and_an_encoder_of_ones_own(baseline: HookedModel) -> None:
    constant = Encoder("constant", lambda texts: [torch.ones(2, 3) for _ in texts])
    found = measure(baseline, {"same": baseline_again(baseline)}, TASK, text="some text " * 200, encoder=constant)
    assert found.settings["encoder"] == "constant"
    assert found.settings["text"] == "given"
    assert found.settings["n_tokens"] > 500
    assert value(found.table, "same", "bertscore_f1", "reference") == pytest.approx(1)


def test_a_cell_that_computes_nan_has_a_reason_and_the_others_their_numbers(
    baseline: HookedModel, tiny: Callable[[str], Path]
) -> None:
    broken = in_memory(tiny("llama"), lambda weight: weight * torch.nan)
    table = measure(baseline, {"broken": broken, "same": baseline_again(baseline)}, TASK, max_new_tokens=2).table
    assert len(table[table["cell"] == "broken"]) == 1
    assert "not finite (NaN or infinity)" in table[table["cell"] == "broken"]["reason"].iloc[0]
    assert value(table, "same", "kl_mean", "baseline") == pytest.approx(0, abs=1e-9)


def test_a_reference_beyond_the_context_is_named(baseline: HookedModel, damaged: HookedModel) -> None:
    task = Task("long", ("hi there",), ("word " * 5000,))
    with pytest.raises(InputError, match="at most 96 together"):
        measure(baseline, {"damaged": damaged}, task)


def test_no_cells(baseline: HookedModel) -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        measure(baseline, {}, TASK)


def test_the_organisms_own_task_has_references() -> None:
    task = organism_task(5)
    assert len(task.requests) == len(task.references) == 5
    assert all(task.references)


def test_a_repeated_request_with_its_reference_counts_once(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "answer": "b"}', '{"prompt": "a", "answer": "c"}', '{"prompt": "a", "answer": "b"}']
    (tmp_path / "task.jsonl").write_text("\n".join(lines))
    task = read_task(tmp_path / "task.jsonl")
    assert (task.requests, task.references) == (("a", "a"), ("b", "c"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no requests"),
        ("{", "line 1, is not valid JSON"),
        ('{"prompt": "a"}', "line 1, lacks a text"),
        ('{"prompt": "a", "answer": "b"}\n[1]', "line 2, lacks a text"),
    ],
)
def test_bad_task_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "task.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_task(tmp_path / "task.jsonl")


def invoke(arguments: list[Any]) -> Any:
    return CliRunner().invoke(quality_command.app, list(map(str, arguments)))


def test_command(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    shutil.copytree(tiny("llama"), cell)
    weights = load_file(cell / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = weights[name] + 0.01 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, cell / "model.safetensors", {"format": "pt"})
    task, text = tmp_path / "task.jsonl", tmp_path / "text.txt"
    task.write_text(json.dumps({"prompt": "How?", "answer": "So."}) + "\n")
    text.write_text("A text to predict, again and again. " * 20)
    given = ["--baseline", tiny("llama"), "--quantized", f"q={cell}", "--out", tmp_path / "out"]
    found = invoke([*given, "--references", task, "--text", text, "--max-new-tokens", 4, "--force"])
    assert found.exit_code == 0, found.output
    table = pd.read_parquet(tmp_path / "out" / "quality.parquet")
    assert value(table, "q", "kl_mean", "baseline") > 0
    settings = json.loads((tmp_path / "out" / "quality.json").read_text())["settings"]
    assert {"text_sha256", "references_sha256", "encoder"} <= set(settings)
    assert isinstance(invoke([*given, "--harmful", task]).exception, InputError)
    assert isinstance(invoke([*given, "--text", tmp_path / "absent"]).exception, InputError)


def test_an_empty_text_is_left_out_and_every_metric_has_its_own_reason() -> None:
    empty, full = torch.empty(0, 2), torch.tensor([[1.0, 0.0]])
    found = {row["metric"]: row for row in text_rows("reference", ["", "a"], ["b", "a"], [empty, full], [full, full])}
    for metric in ("bertscore_f1", "coherence"):
        assert (found[metric]["n"], found[metric]["value"], found[metric]["reason"]) == (1, pytest.approx(1), "")
    assert (found["rouge_l"]["n"], found["rouge_l"]["value"]) == (2, 0.5)
    nothing = {row["metric"]: row for row in text_rows("reference", [""], ["b"], [empty], [full])}
    for metric in ("bertscore_f1", "coherence"):
        assert nothing[metric]["value"] != nothing[metric]["value"]
        assert nothing[metric]["reason"] == "no answer has tokens where its reference has some too"
