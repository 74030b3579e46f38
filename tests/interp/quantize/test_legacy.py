"""Cells written by AutoAWQ and AutoGPTQ, judged by those programs' own layers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig
from typer.testing import CliRunner

from interp import cli, load
from interp.checkpoint import open_checkpoint
from interp.errors import InputError
from interp.quantize import __main__ as quantize_command
from interp.quantize.cells import Job, read_record
from interp.quantize.legacy_jobs import VARIABLE, legacy_directory, legacy_job, legacy_process
from interp.quantize.legacy_worker import keep_weights_while_searching, transformers_4_config
from interp.quantize.write import check_writers, write_cells
from tests.writer_models import CALIBRATION, write_checkpoint

FILES = Path(__file__).parents[2] / "quantizer_files" / "legacy"
CELLS = {"autoawq": "AWQ", "autogptq": "GPTQ"}
needs_writers = pytest.mark.skipif(
    not (legacy_directory() / ".ready").exists(), reason="AutoAWQ and AutoGPTQ are not there: `make legacy`"
)


@pytest.mark.parametrize("writer", CELLS)
def test_weights_of_the_fixtures_are_the_writers_own(writer: str) -> None:
    checkpoint = open_checkpoint(FILES / writer)
    expected = load_file(FILES / f"{writer}.expected.safetensors")
    assert sorted(expected) == sorted(checkpoint.linears())
    for name, weight in expected.items():
        assert torch.equal(checkpoint.weight(name, torch.float16), weight), name
    assert checkpoint.warnings == []
    assert (checkpoint.format, checkpoint.quantization["group_size"]) == (CELLS[writer].lower(), 32)
    assert checkpoint.config.rope_parameters["rope_theta"] == 700.0  # the config is in transformers 4's words


class _Searching:
    """What AutoAWQ does with a block's weights while it looks for scales."""

    def _compute_best_scale(self, inputs: None, w_mean: None, x_mean: None, module: torch.nn.Module) -> None:
        own = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
        for scale in (3.0, 5.0):
            weight = module.get_parameter("weight")
            with torch.no_grad():
                weight.mul_(scale)
                weight.data = weight.data / scale
            module.load_state_dict(own)


def test_the_search_for_scales_leaves_the_weights_alone() -> None:
    linear = torch.nn.Linear(4, 4)
    before = linear.weight.detach().clone()
    _Searching()._compute_best_scale(None, None, None, linear)
    assert not torch.equal(linear.weight, before), "on a CPU its copy is none"
    linear.weight.data = before.clone()
    keep_weights_while_searching(_Searching)
    _Searching()._compute_best_scale(None, None, None, linear)
    assert torch.equal(linear.weight, before)
    assert "state_dict" not in vars(linear)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0}}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": None}),
        ("phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}}),
    ],
)
def test_configs_of_transformers_5_in_the_words_of_4(model_type: str, settings: dict[str, Any]) -> None:
    """Transformers 5 reads both: what it makes of the older words must be the config that was translated."""
    config = AutoConfig.for_model(model_type, dtype="float16", **settings)
    older = transformers_4_config(config.to_dict())
    assert "rope_parameters" not in older
    assert older["rope_theta"] == config.rope_parameters["rope_theta"]
    assert older["torch_dtype"] == "float16"
    older.pop("model_type")
    read = AutoConfig.for_model(model_type, **older)
    assert read.rope_parameters == config.rope_parameters
    assert read.dtype == config.dtype
    assert transformers_4_config(older) == older


def test_rotary_embeddings_by_layer_have_no_older_words() -> None:
    by_layer = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(ValueError, match="no word for rotary embeddings by layer"):
        transformers_4_config({"model_type": "gemma3_text", "rope_parameters": by_layer})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llama", tmp_path_factory.mktemp("source") / "llama")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that looks like the writers', in which neither of them can be imported."""
    directory = tmp_path / "environment"
    for package in ("autoawq-0.2.9", "auto_gptq-0.7.1", "torch-2.13.0", "transformers-4.51.3"):
        name, version = package.rsplit("-", 1)
        place = directory / "lib" / "python3.11" / "site-packages" / f"{package}.dist-info"
        place.mkdir(parents=True)
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    (directory / "bin").mkdir()
    # A link to a virtual environment's interpreter would start as the one that it was made of.
    (directory / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (directory / "bin" / "python").chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(directory))
    return directory


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        ({"writers": ["autoawq"], "cells": ["GPTQ"]}, "'autoawq' writes none of the cells GPTQ"),
        ({"writers": ["autogptq"], "cells": ["AWQ", "Q8_0"]}, "'autogptq' writes none of the cells AWQ, Q8_0"),
        ({"writers": ["autoqptq"], "cells": ["GPTQ"]}, "no writer 'autoqptq'.*autogptq"),
        (
            {"writers": ["autoawq"], "cells": ["AWQ"], "keep": ["model.layers.0.mlp.up_proj"]},
            "autoawq cannot keep single linears",
        ),
        ({"writers": ["autoawq"], "cells": ["AWQ"], "group_size": -1}, "AutoAWQ cannot write one group a row"),
        ({"writers": ["autogptq"], "cells": ["GPTQ"], "bits": 5}, "GPTQ of 5 bits cannot"),
    ],
)
def test_what_cannot_be_asked_of_them(
    llama: Path,
    tmp_path: Path,
    environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    attempt: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setattr(Job, "write", lambda *_: pytest.fail("something was written"))
    with pytest.raises(InputError, match=f"(?s){said}"):
        write_cells(llama, tmp_path / "out", CALIBRATION, **attempt)
    assert check_writers(["autogptq"], ["GPTQ-3bit"]) == {"GPTQ": "autogptq"}


def test_models_that_they_do_not_know(tmp_path: Path, environment: Path) -> None:
    phi = write_checkpoint("phi", tmp_path / "phi")
    with pytest.raises(InputError, match=r"AutoAWQ cannot write .*'phi'"):
        write_cells(phi, tmp_path / "out", CALIBRATION, ["AWQ"], writers=["autoawq"])
    odd = write_checkpoint("llama", tmp_path / "odd", intermediate_size=288)
    with pytest.raises(InputError, match=r"(?s)gate_proj.*has 288 outputs.*a multiple of 64"):
        write_cells(odd, tmp_path / "out", CALIBRATION, ["AWQ"], writers=["autoawq"], group_size=32)


def test_without_their_environment_the_command_says_how_to_make_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    options = ["--baseline", str(llama), "--out", str(tmp_path / "out"), "--cells", "AWQ", "--writer", "autoawq"]
    ended = CliRunner().invoke(quantize_command.app, options)
    assert isinstance(ended.exception, InputError)
    assert "make legacy" in str(ended.exception)
    monkeypatch.setattr(sys, "argv", ["interp.quantize", *options])
    with pytest.raises(SystemExit) as ending:
        cli.run(quantize_command.app)
    assert ending.value.code == 2
    assert "AutoAWQ has no environment" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_writer_that_fails_leaves_its_log_alone(llama: Path, tmp_path: Path, environment: Path) -> None:
    """The script runs, isolated from this project, and what it raises reaches the user."""
    out = tmp_path / "cells"
    with pytest.raises(InputError, match=r"legacy_worker failed: \w*Error") as failure:
        write_cells(llama, out, CALIBRATION, ["AWQ"], writers=["autoawq"])
    assert "AWQ-autoawq.log" in str(failure.value)
    assert os.listdir(out) == ["AWQ-autoawq.log"]
    assert "Traceback" in (out / "AWQ-autoawq.log").read_text()


JOBS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama/autoawq": ("llama", "autoawq", {"group_size": 128}),
    "llama/autogptq": ("llama", "autogptq", {"group_size": 128, "act_order": False}),
    "llama/autogptq-order": ("llama", "autogptq", {"group_size": 64, "act_order": True}),
    "llama/autogptq-3bit": ("llama", "autogptq", {"group_size": -1, "act_order": False, "bits": 3}),
    "qwen2/autoawq": ("qwen2", "autoawq", {"group_size": 64}),
    "qwen2/autogptq": ("qwen2", "autogptq", {"group_size": 64, "act_order": False}),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sources")
    return {name: write_checkpoint(name, directory / name) for name in ("llama", "qwen2")}


@pytest.fixture(scope="module")
def written(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("written")
    with legacy_process() as process:
        for name, (source, writer, settings) in JOBS.items():
            legacy_job(process, writer, open_checkpoint(sources[source]), out / name, CALIBRATION, settings).write()
    return {name: out / name for name in JOBS}


@needs_writers
@pytest.mark.slow
def test_weights_are_the_writers_own(written: dict[str, Path]) -> None:
    python = str(legacy_directory() / "bin" / "python")
    judge = [python, "-I", str(FILES / "dequantized.py"), *map(str, written.values())]
    subprocess.run(judge, check=True, capture_output=True)
    for name, path in written.items():
        checkpoint = open_checkpoint(path)
        weights = load_file(path.with_name(f"{path.name}.expected.safetensors"))
        assert sorted(weights) == sorted(checkpoint.linears())
        for linear, weight in weights.items():
            assert torch.equal(checkpoint.weight(linear, torch.float16), weight), (name, linear)
        assert checkpoint.warnings == []
        assert (checkpoint.quantization["act_order"], checkpoint.quantization["bits"]) == (
            "order" in name,
            3 if "3bit" in name else 4,
        )


@needs_writers
@pytest.mark.slow
def test_cells_open_as_models_beside_their_baseline(sources: dict[str, Path], written: dict[str, Path]) -> None:
    for name, path in written.items():
        source = sources[name.split("/")[0]]
        baseline, cell = load(source), load(path, like=source)
        ids = baseline.tokenizer(CALIBRATION[0], return_tensors="pt")["input_ids"]
        assert torch.equal(cell.tokenizer(CALIBRATION[0], return_tensors="pt")["input_ids"], ids)
        with torch.no_grad():
            right, quantized = (model.hf(ids).logits for model in (baseline, cell))
        near = (right - quantized).norm() / right.norm()
        print(name, float(near))
        assert 0 < near < 1, (name, float(near))


@needs_writers
@pytest.mark.slow
def test_the_record_says_who_wrote_it_and_on_what(written: dict[str, Path]) -> None:
    for name, path in written.items():
        record = read_record(path)
        assert record is not None
        assert record.writer == ("AutoAWQ" if "awq" in name else "AutoGPTQ")
        assert record.versions["transformers"] == "4.51.3"
        assert record.details["calibration_tokens"] > 0
        assert record.details["computed_with"]["threads"] >= 1
        assert record.settings["calibration_texts"] == len(CALIBRATION)
        assert record.notes == []


@needs_writers
@pytest.mark.slow
def test_the_command_takes_both(sources: dict[str, Path], written: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for writer, cell in CELLS.items():
        shutil.copytree(written[f"llama/{writer}"], out / f"{cell}-{writer}")
    before = {cell: (out / cell / "quantscope.json").read_text() for cell in os.listdir(out)}
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in CALIBRATION))
    options = ["--baseline", str(sources["llama"]), "--out", str(out), "--cells", "AWQ,GPTQ"]
    options += ["--calibration", str(texts), "--writer", "autoawq", "--writer", "autogptq", "--group-size", "128"]
    ended = CliRunner().invoke(quantize_command.app, options)
    assert ended.exit_code == 0, ended.output
    assert f"AWQ\t{out / 'AWQ-autoawq'}" in ended.stdout
    assert before == {cell: (out / cell / "quantscope.json").read_text() for cell in os.listdir(out)}
