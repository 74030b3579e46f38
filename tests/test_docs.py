"""The documentation is true: commands and options exist, links lead somewhere, and what the README says to run runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click.testing
import pytest
import typer
from typer.core import TyperGroup

from probes import __main__ as quantscope

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _script() -> Any:
    specification = importlib.util.spec_from_file_location("documented", ROOT / "scripts" / "document_commands.py")
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


documented = _script()
LINES = [
    (page.name, line, block.runs)
    for page in PAGES
    for block in documented.blocks(page.read_text(encoding="utf-8"))
    for line in block.lines
]
COMMANDS = sorted({line for _, line, _ in LINES if re.match(r"python -m \w+\.|quantscope\b", line)})
README = [line for page, line, runs in LINES if page == "README.md" and runs and line in COMMANDS]


def command_of(line: str) -> tuple[Any, list[str]]:
    """The command that a line calls, and its arguments."""
    program, *arguments = shlex.split(line.partition(" | ")[0])
    if program == "quantscope":
        return typer.main.get_command(quantscope.app), arguments
    _, name, *arguments = arguments
    package = (importlib.util.find_spec(name) or pytest.fail(line)).submodule_search_locations is not None
    return typer.main.get_command(import_module(f"{name}.__main__" if package else name).app), arguments


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_options_exist(line: str) -> None:
    """Parsed as it would be, without being run."""
    command, arguments = command_of(line)
    while isinstance(command, TyperGroup) and arguments and not arguments[0].startswith("-"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    if arguments:
        command.make_context("documented", arguments, resilient_parsing="--help" in arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_lines_name_what_exists(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for name, line, _ in LINES:
        if name == page.name and not line.startswith(("python -m ", "quantscope")):
            program, *arguments = shlex.split(line)
            assert program in ("make", "inspect", "pip", "python"), line
            assert program != "make" or arguments[0] in targets, line
            assert program != "python" or (ROOT / arguments[0]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_and_options_in_the_text_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`((?:interp|probes)\.[a-z_]+)`", text)):
        package, _, attribute = name.partition(".")
        assert importlib.util.find_spec(name) or hasattr(import_module(package), attribute), name
    for file in set(re.findall(r"`((?:interp|probes|tests|scripts|notebooks|docs)/[\w./]+)`", text)):
        assert (ROOT / file).exists(), file


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces to hyphens, punctuation gone."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_output_is_shown(page: Path) -> None:
    for block in documented.blocks(page.read_text(encoding="utf-8")):
        assert block.text is None or block.text.strip(), block.lines


@pytest.fixture(scope="module")
def folder(organism: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The organism and its cells where the documentation says that they are."""
    directory = tmp_path_factory.mktemp("documented")
    documented.lay_out(directory, n_answers=8)
    return directory


@pytest.mark.slow
def test_the_readme_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shell lines in their order, on few prompts, and its Python."""
    monkeypatch.chdir(folder)
    assert README
    for line in README:
        command, arguments = command_of(line)
        if any("--limit" in parameter.opts for parameter in command.params):
            arguments = [*arguments, "--limit", "4"]
        result = click.testing.CliRunner().invoke(command, arguments)
        is_gate = "--max-" in line or "probes.check" in line
        assert result.exit_code in ((0, 3, 6) if is_gate else (0,)), f"{line}\n{result.output}\n{result.exception!r}"
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(code, "README.md", "exec"), {})


@pytest.mark.slow
def test_the_gate_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's check on few prompts, and the stored check under another bound."""
    monkeypatch.chdir(folder)
    lines = [line for page, line, runs in LINES if page == "ci-gate.md" and runs]
    assert len(lines) == 2
    for line in lines:
        command, arguments = command_of(line)
        few = [] if "--from-run" in line else ["--limit", "4"]
        result = click.testing.CliRunner().invoke(command, [*arguments, *few])
        assert result.exit_code == 6, f"{line}\n{result.output}\n{result.exception!r}"
    assert ElementTree.parse(folder / "runs/check.xml").findall(".//testcase/error")
