"""`quantscope`, and what is the same in all of its commands."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from interp import cli
from interp.errors import MissingExtra
from probes import demo
from probes.__main__ import GROUPS, MODULES, app, summary
from probes.harness.following import AFTER, following

ROOT = Path(__file__).parents[1]
LAYOUT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").partition("## Layout")[2]


def distribution(requirement: str) -> str:
    """The name alone, as the registry spells it."""
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower().replace("_", "-")


def console(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from probes.__main__ import main; main()", *arguments]
    return subprocess.run(
        program, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment
    )


def test_help_lists_all_commands_in_groups() -> None:
    printed = CliRunner().invoke(app, ["--help"]).output
    listed = re.findall(r"^  (\w+)  ", printed, re.M)
    assert [name for name in listed if name in MODULES] == list(MODULES)
    joined = " ".join(printed.split())
    assert all(summary(module) in joined for module in MODULES.values())
    assert [line[:-1].lower() for line in re.findall(r"^\w[\w ]+:$", printed, re.M)][1:] == list(GROUPS)


def test_groups_are_those_of_the_layout() -> None:
    layout = LAYOUT[LAYOUT.index("probes/      ") : LAYOUT.index("harness/ (prompts")].removeprefix("probes/")
    rows = [re.split(r"\s{2,}", line.strip()) for line in layout.strip().splitlines()]
    grouped = {heading: {f"probes.{name}" for name in names.split()} for names, heading in rows}
    assert grouped == {heading: set(modules) for heading, modules in GROUPS.items() if heading != "models"}


def test_without_arguments_it_is_the_list() -> None:
    finished = console()
    assert finished.returncode == 0
    assert "neurons" in finished.stdout


@pytest.mark.parametrize(("typo", "meant"), [("entropie", "entropy"), ("quantise", "quantize"), ("nuerons", "neurons")])
def test_a_typo_gets_the_nearest_name(typo: str, meant: str) -> None:
    finished = console(typo)
    assert finished.returncode == 2
    assert f"Did you mean '{meant}'" in finished.stderr


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_its_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f" {name} " in result.output


def test_a_command_of_the_list_runs() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "probes", "matrix", "/nowhere/cells.csv", "--quality", "bertscore"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 2
    assert "/nowhere/cells.csv" in finished.stderr.replace("\n", "")


def test_the_shell_completes_commands_and_options() -> None:
    asked = {"_QUANTSCOPE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    names = "import sys; sys.argv[0] = 'quantscope'; from probes.__main__ import main; main()"
    for line, expected in (("quantscope ent", "entropy"), ("quantscope entropy --base", "--baseline")):
        environment = os.environ | asked | {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        finished = subprocess.run(
            [sys.executable, "-c", names], capture_output=True, text=True, timeout=120, check=False, env=environment
        )
        assert finished.stdout.split() == [expected]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {extra: set(map(distribution, packages)) for extra, packages in PROJECT["optional-dependencies"].items()}
IN_NOTEBOOKS = {"ipython"}
LEGACY_MODULES = {"awq", "auto_gptq"}
"""Of autoawq and auto-gptq, which are installed without what they depend on."""
"""Imported where Jupyter runs, which has it."""


def calls_of_missing_extras() -> Iterator[tuple[str, str]]:
    """Package and extra of every error that names one; `need` has the module before them."""
    for file in (*ROOT.glob("interp/**/*.py"), *ROOT.glob("probes/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("MissingExtra", "need"):
                constants = [value.value for value in node.args if isinstance(value, ast.Constant)]
                if len(constants) == len(node.args):
                    yield constants[-3], constants[-2]


def test_a_missing_package_names_the_extra_that_has_it() -> None:
    named = set(calls_of_missing_extras())
    assert {extra for _, extra in named} == {"quantize", "gguf", "datasets", "lens", "ray"}
    assert all(package in EXTRAS[extra] for package, extra in named)


def test_everything_imported_is_a_dependency_or_in_an_extra() -> None:
    """What only development needs is imported nowhere."""
    known = set(map(distribution, PROJECT["dependencies"])) | IN_NOTEBOOKS
    known |= {package for extra, packages in EXTRAS.items() if extra != "dev" for package in packages}
    of_module = packages_distributions()
    legacy = {distribution(line) for line in (ROOT / "constraints-legacy.txt").read_text().splitlines() if line}
    for file in (*ROOT.glob("interp/**/*.py"), *ROOT.glob("probes/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"interp", "probes"}:
                named = known | legacy | LEGACY_MODULES if file.name == "legacy_worker.py" else known
                assert named & set(map(distribution, of_module.get(module, [module]))), f"{file}: {module}"


def test_the_demo_says_first_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "quantscope\[quantize,gguf\]"'):
        demo.main()


NEXT = r"^next: python -m (.+)$"
PAIR = ["--baseline", "a b", "--quantized", "AWQ=c"]


def test_every_command_says_what_follows() -> None:
    for name, module in MODULES.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None
        entry = (
            Path(str(spec.origin)).with_name("__main__.py")
            if spec.submodule_search_locations
            else Path(str(spec.origin))
        )
        source = entry.read_text(encoding="utf-8")
        assert re.search(r"\b(cli\.ending|publish|finish|_finish|show)\(", source), name


@pytest.mark.parametrize("probe", AFTER)
def test_what_follows_a_probe_can_be_run_as_it_stands(probe: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.ending([Path("results/x.parquet")], following(probe, PAIR, Path("results")))
    printed = capsys.readouterr().err
    assert printed.startswith("written: results/x.parquet\n")
    commands = re.findall(NEXT, printed, re.M)
    assert 1 <= len(commands) <= 2
    for command in commands:
        module, *arguments = shlex.split(command)
        assert arguments[1] == "a b"
        typer.main.get_command(importlib.import_module(f"{module}.__main__").app).make_context(module, arguments)


def test_commands_are_named_as_the_user_called_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/quantscope", "refusal"])
    assert cli.invocation("probes.drift", Path("my runs/a.parquet")) == "quantscope drift 'my runs/a.parquet'"
    monkeypatch.setattr(sys, "argv", ["/x/probes/refusal/__main__.py"])
    assert cli.invocation("interp.quantize", "--help") == "python -m interp.quantize --help"


def test_commands_that_are_named_next_exist() -> None:
    for file in (*ROOT.glob("interp/**/*.py"), *ROOT.glob("probes/**/*.py")):
        for module in re.findall(r'\[\["((?:interp|probes)\.\w+)"', file.read_text(encoding="utf-8")):
            assert module in MODULES.values(), file
