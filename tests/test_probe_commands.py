"""The probes from the shell: what they write, print and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer

from interp import cli, load
from interp.errors import InputError
from probes.calibration import __main__ as calibration_command
from probes.direction import __main__ as direction_command
from probes.entropy import __main__ as entropy_command
from probes.geometry import __main__ as geometry_command
from probes.harness.options import cell_paths
from probes.harness.results import read_result
from probes.margin import __main__ as margin_command
from probes.neurons import __main__ as neurons_command
from probes.study.reader import parse_study
from tests.cells import HARMFUL, HARMLESS, q8_0
from tests.packed_files import edit, gptq_copy
from tests.tiny_models import NO_GGUF, write

APPS = {
    "entropy": entropy_command.app,
    "direction": direction_command.app,
    "calibration": calibration_command.app,
    "neurons": neurons_command.app,
    "margin": margin_command.app,
    "geometry": geometry_command.app,
}


@pytest.fixture(scope="module")
def pair(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny("llama"), q8_0(tiny("llama"), tmp_path_factory.mktemp("cells") / "llama-q8.gguf")


@pytest.fixture
def arguments(pair: tuple[Path, Path], tmp_path: Path) -> list[str]:
    for prompts in (HARMFUL, HARMLESS):
        (tmp_path / prompts.name).write_text("\n".join(prompts.instructions))
    files = ["--harmful", str(tmp_path / HARMFUL.name), "--harmless", str(tmp_path / HARMLESS.name)]
    return ["--baseline", str(pair[0]), "--quantized", str(pair[1]), *files, "--out", str(tmp_path / "out")]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[[typer.Typer, list[str]], int]:
    def run(app: typer.Typer, arguments: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["probe", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.run(app)
        return int(exit_.value.code or 0)

    return run


def replaced(arguments: list[str], option: str, value: str) -> list[str]:
    index = arguments.index(option)
    return [*arguments[: index + 1], value, *arguments[index + 2 :]]


@pytest.mark.parametrize("name", APPS)
def test_writes_and_prints(name: str, invoke: Any, arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    assert invoke(APPS[name], arguments) == cli.Exit.MEASURED
    assert "llama-q8" in capsys.readouterr().out
    result = read_result(tmp_path / "out" / f"{name}.json")
    assert "llama-q8" in result.table["cell"].tolist()
    assert result.settings["cells"]["llama-q8"]["format"] == "gguf"
    assert result.settings["prompts"]["harmless"]["n"] == 4


@pytest.mark.parametrize("model", NO_GGUF)
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_blocks_that_differ(
    model: str, stream: list[str], tiny: Callable[[str], Path], invoke: Any, arguments: list[str], tmp_path: Path
) -> None:
    """The shift of entropy of a cell against the two models' logits, by the definition."""
    baseline, cell = tiny(model), gptq_copy(tiny(model), tmp_path / "cell")
    of_pair = replaced(replaced(arguments, "--baseline", str(baseline)), "--quantized", f"cell={cell}")
    assert invoke(APPS["entropy"], [*of_pair, "--template", "none", *stream]) == cli.Exit.MEASURED
    table = read_result(tmp_path / "out" / "entropy.json").table.set_index(["cell", "prompts"])
    for prompts in (HARMFUL, HARMLESS):
        expected = [
            torch.distributions.Categorical(logits=load(path).logits(prompts.instructions).double()).entropy().mean()
            for path in (baseline, cell)
        ]
        for name, value in zip(("baseline", "cell"), expected, strict=True):
            side = "harmful" if prompts is HARMFUL else "harmless"
            assert table.loc[(name, side), "entropy"] == pytest.approx(value.item(), abs=1e-5)


def test_json_on_standard_output_is_the_result(invoke: Any, arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    assert invoke(neurons_command.app, [*arguments, "--json", "--site", "head", "--seed", "3"]) == cli.Exit.MEASURED
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["seed"] == 3
    assert {row["site"] for row in document["rows"]} == {"head"}
    stored = pd.read_parquet(tmp_path / "out" / "neurons.parquet")
    assert [row["ratio"] for row in document["rows"]] == pytest.approx(stored["ratio"].tolist(), rel=1e-12)
    units = pd.read_parquet(tmp_path / "out" / "safety_units.parquet")
    assert units["write_error"].between(0, 0.1).all()


def test_template_and_limit(invoke: Any, arguments: list[str], tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }} Answer:")
    assert invoke(entropy_command.app, [*arguments, "--template", str(template), "--limit", "2"]) == cli.Exit.MEASURED
    settings = read_result(tmp_path / "out" / "entropy.json").settings
    assert settings["prompts"]["harmful"]["n"] == 2
    assert settings["template_sha256"]


def test_a_system_prompt_is_recorded_and_goes_on_to_the_next_command(
    invoke: Any, arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    prompt = tmp_path / "system.md"
    prompt.write_text("Be terse.\n")
    assert invoke(entropy_command.app, arguments) == cli.Exit.MEASURED
    plain = read_result(tmp_path / "out" / "entropy.json")
    assert plain.settings["system"] == "auto"
    assert invoke(entropy_command.app, [*arguments, "--system", str(prompt)]) == cli.Exit.MEASURED
    told = read_result(tmp_path / "out" / "entropy.json")
    assert (told.settings["system"], told.settings["template"]) == ("Be terse.", "auto")
    assert told.settings["template_sha256"] != plain.settings["template_sha256"]
    assert (told.table["entropy"] != plain.table["entropy"]).all()
    assert f"--system {prompt}" in " ".join(capsys.readouterr().err.split())


def test_names_of_cells(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    named = cell_paths(["q4=somewhere/x.gguf", "cells/awq", "org/model-q4.gguf", str(odd)])
    assert named == {
        "q4": "somewhere/x.gguf",
        "awq": "cells/awq",
        "model-q4": "org/model-q4.gguf",
        "a=b": str(odd),
    }


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("baseline=x", "'baseline' is the baseline's name"),
        ("Baseline=x", "'Baseline' is the baseline's name"),
        ("baseline-again=x", "what the baseline asked again is called"),
        ("baseline-again-10-1=x", "what the baseline asked again is called"),
        ("control=x", "what the baseline on another engine is called"),
        ("cells/control.gguf", "what the baseline on another engine is called"),
        ("../up=x", "'../up' cannot be a name"),
        ("..=x", "'..' cannot be a name"),
        (".=x", "'.' cannot be a name"),
        ("=x", "'' cannot be a name"),
        ("a/b=x", "'a/b' cannot be a name"),
        ("a\\b=x", "cannot be a name"),
        ("a\nb=x", "cannot be a name"),
        ("a\0=x", "cannot be a name"),
        ("\u202eq4=x", "cannot be a name"),
        ("q4\n=x", "cannot be a name"),
        (" q4=x", "cannot be a name"),
        ("-q4=x", "cannot be a name"),
        (f"{'x' * 101}=x", "cannot be a name"),
        ("/", "'' cannot be a name"),
        ("http://host:1/v1#org/llama3:8b", "'llama3:8b' cannot be a name"),
    ],
)
def test_names_that_no_cell_can_have(argument: str, found: str) -> None:
    """The command line and a study file refuse the same names."""
    with pytest.raises(InputError) as raised:
        cell_paths([argument])
    assert found in str(raised.value)
    assert "--quantized NAME=PATH" in str(raised.value)
    name = argument.partition("=")[0]
    if "=" in argument:
        head = '[[models]]\nname = "m"\nbaseline = "org/b"\n'
        document = f'{head}[[models.cells]]\nname = {json.dumps(name)}\npath = "org/p"\n'
        with pytest.raises(InputError, match="name"):
            parse_study(document, Path("."))


def test_servers_are_called_after_their_model() -> None:
    address = "http://localhost:8000/v1?x=y#Qwen/Qwen2.5-7B"
    assert cell_paths([address, "s=http://localhost:8000/v1"]) == {
        "Qwen2.5-7B": address,
        "s": "http://localhost:8000/v1",
    }


BAD: dict[str, tuple[Callable[[list[str], Path], list[str]], str]] = {
    "missing baseline": (lambda a, _: replaced(a, "--baseline", "/nowhere/model"), "/nowhere/model"),
    "missing cell": (lambda a, _: replaced(a, "--quantized", "/nowhere/cell"), "/nowhere/cell"),
    "two cells of one name": (lambda a, _: [*a, "--quantized", a[3]], "Two cells are named"),
    "cell named baseline": (lambda a, _: replaced(a, "--quantized", f"baseline={a[3]}"), "another name"),
    "missing prompts": (lambda a, _: replaced(a, "--harmful", "/nowhere/p.txt"), "/nowhere/p.txt"),
    "empty prompts": (lambda a, d: replaced(a, "--harmless", _file(d, "")), "no prompts"),
    "the same prompts twice": (lambda a, _: replaced(a, "--harmless", a[5]), "in both"),
    "too long a prompt": (lambda a, d: replaced(a, "--harmful", _file(d, "kill " * 500)), "context"),
    "missing template": (lambda a, _: [*a, "--template", "/nowhere/t.jinja"], "/nowhere/t.jinja"),
    "broken template": (lambda a, d: [*a, "--template", _file(d, "{% if %}")], "template"),
    "missing system prompt": (lambda a, _: [*a, "--system", "/nowhere/s.txt"], "/nowhere/s.txt"),
    "empty system prompt": (lambda a, d: [*a, "--system", _file(d, " ")], "system prompt is empty"),
    "system prompt for raw text": (lambda a, _: [*a, "--template", "none", "--system", "Be kind."], "raw text here"),
    "out is a file": (lambda a, d: replaced(a, "--out", _file(d, "x")), "is not a directory"),
    "out inside a file": (lambda a, d: replaced(a, "--out", _file(d, "x") + "/out"), "is not a directory"),
}


def _file(directory: Path, content: str) -> str:
    path = directory / "bad.txt"
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, invoke: Any, arguments: list[str], tmp_path: Path, capsys: Any) -> None:
    change, expected = BAD[case]
    assert invoke(entropy_command.app, change(arguments, tmp_path)) == cli.Exit.BAD_INPUT
    printed = capsys.readouterr()
    paragraph = " ".join(printed.err.split())
    assert expected in paragraph
    assert paragraph.startswith("error: ")
    assert printed.out == ""
    assert "\n\n" not in printed.err.strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", APPS)
def test_nothing_measured_is_exit_code_4(
    name: str, invoke: Any, arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    """A cell whose one weight matrix is out of float16's range."""
    other = write("llama", tmp_path / "other")
    edit(other, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].mul_(1e8))
    options = [*replaced(arguments, "--quantized", str(other)), "--force", "--dtype", "float16"]
    assert invoke(APPS[name], options) == cli.Exit.NOTHING_MEASURED
    assert "holds NaN or infinity" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out" / f"{name}.parquet").is_file()


def test_another_architecture(
    invoke: Any, arguments: list[str], tiny: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    assert invoke(direction_command.app, replaced(arguments, "--baseline", str(tiny("gpt2")))) == cli.Exit.BAD_INPUT
    assert "Not a quantization of this baseline" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_another_model_or_tokenizer_unless_forced(
    invoke: Any, arguments: list[str], tmp_path: Path, capsys: Any
) -> None:
    """A dense copy whose tokenizer numbers two tokens the other way round."""
    other = write("llama", tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[50:52]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    changed = replaced(arguments, "--quantized", str(other))
    assert invoke(entropy_command.app, changed) == cli.Exit.BAD_INPUT
    assert "tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert invoke(entropy_command.app, [*changed, "--force"]) == cli.Exit.MEASURED
    result = read_result(tmp_path / "out" / "entropy.json")
    assert any("not a quantization of this baseline" in warning for warning in result.warnings)
    assert result.settings["force"] is True


def test_one_paragraph_and_no_traceback_in_a_real_process(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "probes.neurons", *replaced(arguments, "--quantized", "/nowhere/cell")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "/nowhere/cell" in finished.stderr.replace("\n", "")


def test_usage_errors_are_exit_code_2() -> None:
    command = [sys.executable, "-m", "probes.entropy", "--nonsense"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 2
