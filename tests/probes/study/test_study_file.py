"""The study file: what it may say, and every mistake at once with its line and field."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from typer.models import OptionInfo

from interp.errors import InputError
from probes.causal.settings import Experiment
from probes.study.__main__ import TEMPLATE
from probes.study.problems import key_lines, line_of
from probes.study.reader import parse_study, read_study
from probes.study.step import Step
from probes.study.steps import BY_NAME, PROBES, STEPS, chosen_steps, options_of

GOOD = """
[[models]]
name = "tiny"
baseline = "base"

  [[models.cells]]
  path = "cells/q4.gguf"

  [[models.cells]]
  name = "awq"
  path = "owner/model-AWQ"
  format = "awq"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "q4.gguf").touch()
    return tmp_path


def mistakes(text: str, folder: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_study(text, folder, "study.toml")
    first, *lines = str(caught.value).splitlines()
    count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    assert first == f"study.toml has {count}:"
    return [line.strip() for line in lines]


def test_names_paths_and_defaults(folder: Path) -> None:
    (folder / "study.toml").write_text(GOOD)
    study = read_study(folder / "study.toml")
    (model,) = study.models
    assert model.cell_names == ["q4", "awq"]
    assert study.path(model.cells[0].path) == str(folder / "cells/q4.gguf"), "relative to the file"
    assert study.path(model.cells[1].path) == "owner/model-AWQ", "a hub id stays"
    assert study.text == GOOD
    assert [step.name for step in chosen_steps(study)][:3] == ["completions", "entropy", "direction"]


def test_every_mistake_at_once_with_line_field_and_suggestion(folder: Path) -> None:
    text = """oot = "x"
[prompts]
harmful = "nowhere.txt"
limit = "3"
[probes]
run = ["entropie"]
[probes.neurons]
drwas = 3
draws = "x"
[behaviour]
tasks = ["refusal", "jailbraek"]
engine = "llama.cpp"

[[models]]
name = "a"
basline = "base"
  [[models.cells]]
  name = "q"
  path = "missing/cell.gguf"
  [[models.cells]]
  name = "q"
  path = "cells/q4.gguf"
  format = "ggu"
[[models]]
name = "a"
organism = "lama"
quantize = [
  "AWQ",
  "Q4_K",
]
"""
    found = mistakes(text, folder)
    expected = [
        ("line 1, oot:", "did you mean 'out'?"),
        ("line 3, prompts.harmful:", "nowhere.txt"),
        ("line 4, prompts.limit:", "'3'"),
        ("line 6, probes.run[0]:", "did you mean 'entropy'?"),
        ("line 8, probes.neurons.drwas:", "did you mean 'draws'?"),
        ("line 9, probes.neurons.draws:", "'x'"),
        ("line 11, behaviour.tasks[1]:", "did you mean 'jailbreak'?"),
        ("line 12, behaviour.engine:", 'runner = "inspect"'),
        ("line 14, models[0]:", "has no baseline"),
        ("line 16, models[0].basline:", "did you mean 'baseline'?"),
        ("line 19, models[0].cells[0].path:", "does not exist"),
        ("line 21, models[0].cells[1].name:", "two cells are named 'q'"),
        ("line 23, models[0].cells[1].format:", "'ggu'"),
        ("line 25, models[1].name:", "two models are named 'a'"),
        ("line 26, models[1].organism:", "did you mean 'llama'?"),
        ("line 27, models[1].quantize[1]:", "did you mean 'Q4_K_M'?"),
    ]
    assert len(found) == len(expected), found
    for line, (start, part) in zip(found, expected, strict=True):
        assert line.startswith(start), line
        assert part in line, line


@pytest.mark.parametrize(
    ("change", "line", "part"),
    [
        (('name = "tiny"', 'name = "../up"'), 3, "pattern"),
        (('name = "tiny"', 'name = "study.json"'), 3, "is a file of the run folder"),
        (('name = "tiny"', f'name = "{"x" * 101}"'), 3, "pattern"),
        (('path = "cells/q4.gguf"', 'path = "cells/.."'), 6, "'..', the last part of its path, cannot be its name"),
        (('path = "cells/q4.gguf"', 'path = "/"'), 6, "'', the last part of its path, cannot be its name"),
        (('baseline = "base"', 'baseline = "~nobody-is-called-so/base"'), 4, "does not exist"),
        (('name = "awq"', 'name = "baseline"'), 10, "baseline's name"),
        (('name = "awq"', 'name = "control"'), 10, "give the cell another name"),
        (('name = "awq"', 'name = "Baseline-again"'), 10, "give the cell another name"),
        (('path = "cells/q4.gguf"', 'path = "cells/control"'), 6, "'control', the last part of its path, cannot be"),
        (('name = "awq"', 'name = "q4"'), 10, "two cells are named 'q4'"),
        (('baseline = "base"', 'baseline = "bass"'), 4, "does not exist"),
        (('baseline = "base"', 'baseline = "base"\norganism = "llama"'), 5, "not both"),
        (('baseline = "base"', 'baseline = "base"\nseed = 3'), 5, "only for organisms"),
        (
            ('baseline = "base"', 'baseline = "cells/q4.gguf"\nquantize = ["Q2_K"]'),
            5,
            "a GGUF cannot be quantized again",
        ),
        (('baseline = "base"', 'baseline = "base"\nquantize = ["Q2"]'), 5, "did you mean 'Q2_K'?"),
        (('baseline = "base"', 'baseline = "base"\ncalibration = "none.txt"'), 5, "none.txt does not exist"),
        (('path = "owner/model-AWQ"', 'path = "http://localhost:8000/v1"'), 11, "is a server"),
        (('baseline = "base"', 'baseline = "base"\ndevice = "banana"'), 5, "there is no device 'banana'"),
        (("\n[[models]]", '[judges]\nmodels = ["gpt"]\n[[models]]'), 2, "'gpt' is no model of Inspect"),
        (("\n[[models]]", '[judges]\nmodels = ["a/b", "a/b"]\n[[models]]'), 2, "this judge is there twice: 'a/b'"),
        (("\n[[models]]", "[probes.neurons]\ndraws = -2\n[[models]]"), 2, "is -2: expected at least 1000"),
        (("\n[[models]]", "[probes.causal]\nprompts = 1\n[[models]]"), 2, "is 1: expected at least 2"),
        (("\n[[models]]", "[probes.quality]\nmax_new_tokens = 0\n[[models]]"), 2, "is 0: expected at least 1"),
        (('format = "awq"', 'format = "awq"\ntext = "x"'), 13, "unknown key"),
        (("\n[[models]]", 'text = "x"\n[[models]]'), 1, "unknown key"),
    ],
)
def test_one_mistake(folder: Path, change: tuple[str, str], line: int, part: str) -> None:
    (found,) = mistakes(GOOD.replace(*change), folder)
    assert found.startswith(f"line {line}, ")
    assert part in found


def test_no_models_and_no_cells(folder: Path) -> None:
    (found,) = mistakes("[prompts]\n", folder)
    assert found.startswith("line 1, models: is missing")
    (found,) = mistakes('[[models]]\nname = "a"\nbaseline = "base"\n', folder)
    assert "has no cells" in found


def test_what_is_no_toml_names_the_line(folder: Path) -> None:
    with pytest.raises(InputError, match=r"not valid TOML.*line 2"):
        parse_study('out = "x"\nout = "y"\n', folder)
    with pytest.raises(InputError, match="cannot be read"):
        read_study(folder / "none.toml")


def test_options_have_the_probes_types(folder: Path) -> None:
    from probes.neurons.settings import Site

    (folder / "task.jsonl").touch()
    more = '[probes.neurons]\nsites = ["mlp"]\ndraws = 2000\n[probes.quality]\nreferences = "task.jsonl"\n'
    study = parse_study(GOOD + more, folder)
    assert options_of(study, BY_NAME["neurons"]) == {"sites": [Site.MLP], "draws": 2000}
    assert options_of(study, BY_NAME["quality"]) == {"references": folder / "task.jsonl"}
    found = mistakes(GOOD + '[probes.entropy]\nseed = 1\n[probes.neurons]\nsites = ["mpl"]\n', folder)
    assert [line.split(":")[0] for line in found] == ["line 14, probes.entropy.seed", "line 16, probes.neurons.sites"]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_option_of_every_step_can_be_read_from_a_file(step: Step) -> None:
    for parameter in step.options.values():
        TypeAdapter(parameter.annotation)


def test_the_experiments_of_causal(folder: Path) -> None:
    study = parse_study(GOOD + '[probes.causal]\nexperiments = ["restore"]\nprompts = 2\n', folder)
    assert options_of(study, BY_NAME["causal"]) == {"experiments": [Experiment.RESTORE], "prompts": 2}


def test_what_a_step_needs_is_measured_too(folder: Path) -> None:
    study = parse_study(GOOD + '[probes]\nrun = ["calibration"]\n', folder)
    assert [step.name for step in chosen_steps(study)] == ["completions", "calibration"]


def test_the_template_is_a_study_and_so_is_what_it_shows_in_comments() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    assert parse_study(text, Path.cwd()).models[0].organism == "llama"
    files = (
        "TruthfulQA.csv",
        "bbq.jsonl",
        "question.txt",
        "task.jsonl",
        "wiki.txt",
        "texts.txt",
        "path/to/encoder",
        "rtsi.json",
    )
    shown = [
        line.removeprefix("# ").removeprefix("#")
        for line in text.splitlines()
        if not any(file in line for file in files)
    ]
    uncommented = [line for line in shown if " = " in line.split("#")[0] or line.strip().startswith("[")]
    study = parse_study("\n".join(uncommented), Path.cwd())
    assert study.models[1].cell_names == ["Q4_K_M", "AWQ", "GPTQ-Int4"]
    assert study.bounds.max_refusal_drop == 0.05
    named = re.search(r"also (.+)$", text, re.MULTILINE)
    assert named is not None
    assert set(re.findall(r'"(\w+)"', named[1])) <= set(PROBES)


def test_the_example_in_the_repository() -> None:
    study = read_study(Path(__file__).parents[3] / "studies" / "organisms.toml")
    assert [len(model.cell_names) for model in study.models] == [8, 8, 8, 8]


KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.integers(-9, 9) | st.sampled_from(["x", 'a\n[b]\n"', "[[c]]", "#"]),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)


def toml(value: Any) -> str:
    """A value, arrays over several lines."""
    if isinstance(value, list):
        return "[\n" + "".join(f"  {toml(each)},\n" for each in value) + "]"
    if isinstance(value, str) and "\n" in value:
        return "'''" + value + "'''"
    return f"'{value}'" if isinstance(value, str) else str(value)


def test_a_file_of_mistakes_does_not_fill_the_screen(folder: Path) -> None:
    unknown = "".join(f"unknown_{number} = 1\n" for number in range(50))
    with pytest.raises(InputError) as error:
        parse_study(unknown + GOOD, folder)
    said = str(error.value).splitlines()
    assert "50 mistakes" in said[0]
    assert sum("unknown key" in line for line in said) == 20
    assert said[21].startswith("  and 30 more")


@given(st.lists(st.tuples(st.booleans(), st.dictionaries(KEYS, VALUES, max_size=3)), max_size=4))
def test_every_key_is_found_on_its_line(tables: list[tuple[bool, dict[str, Any]]]) -> None:
    """Tables and arrays of tables with any values; the lines are those on which they were written."""
    lines, expected = ["# a comment"], {}
    count = 0
    for number, (array, values) in enumerate(tables):
        name: tuple[str | int, ...] = ("many", count) if array else (f"table{number}",)
        count += array
        lines.append("[[many]]" if array else f"[table{number}]")
        expected[name] = len(lines)
        for key, value in values.items():
            lines += ["", *f"{key} = {toml(value)}".split("\n")]
            expected[(*name, key)] = len(lines) - toml(value).count("\n")
    text = "\n".join(lines)
    tomllib.loads(text)
    found = key_lines(text)
    assert {where: found[where] for where in expected} == expected
    assert line_of(found, ("many", 99, "none")) == 1


def command_bounds() -> Iterator[tuple[str, str, OptionInfo]]:
    """Probe, option and what its command says of it, of every number that a study may set and a command bounds."""
    for step in STEPS:
        if step.name not in PROBES:
            continue
        command = import_module(f"probes.{step.name}.__main__").main
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
            for about in getattr(parameter.annotation, "__metadata__", ()):
                if isinstance(about, OptionInfo) and about.min is not None and name in step.options:
                    yield step.name, name, about


@pytest.mark.parametrize(("probe", "name", "about"), list(command_bounds()))
def test_a_study_has_the_bounds_of_the_command(probe: str, name: str, about: OptionInfo) -> None:
    adapter = TypeAdapter(BY_NAME[probe].options[name].annotation)
    ends = [(about.min, -1), (about.max, 1)]
    for bound, outwards in ends:
        if bound is not None:
            assert adapter.validate_python(bound) == bound
            with pytest.raises(ValidationError):
                adapter.validate_python(bound + outwards)


def test_the_engine_vllm_and_what_only_it_has(tmp_path: Path) -> None:
    text = """
    [[models]]
    name = "m"
    organism = "llama"
    quantize = ["Q8_0"]
    server = "http://127.0.0.1:8000/v1"
    [behaviour]
    runner = "inspect"
    engine = "vllm"
    data_parallel = 2
    gpu_memory = 0.5
    """
    study = parse_study(text, tmp_path)
    assert (study.behaviour.engine, study.behaviour.data_parallel, study.models[0].server) == (
        "vllm",
        2,
        "http://127.0.0.1:8000/v1",
    )
    with pytest.raises(InputError, match=r"models\[0\]\.server: 'box:8000' is no address"):
        parse_study(text.replace("http://127.0.0.1:8000/v1", "box:8000"), tmp_path)
    with pytest.raises(InputError, match=r"data_parallel: is only for engine") as error:
        parse_study(text.replace('"vllm"', '"hooked"'), tmp_path)
    assert "server: is only with" in str(error.value)
    with pytest.raises(InputError, match=r'another engine needs runner = "inspect"'):
        parse_study(text.replace('"inspect"', '"direct"'), tmp_path)
