"""All commands in one: `quantscope neurons …` is `python -m probes neurons …` and `python -m probes.neurons …`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from interp import cli

GROUPS: Mapping[str, tuple[str, ...]] = {
    "look inside": (
        "probes.entropy",
        "probes.direction",
        "probes.calibration",
        "probes.neurons",
        "probes.geometry",
        "probes.margin",
        "probes.fragility",
    ),
    "the cause": (
        "probes.attribution",
        "probes.causal",
        "probes.reversion",
        "probes.coverage",
        "probes.depth",
        "probes.why",
    ),
    "behaviour": ("probes.refusal", "probes.drift", "probes.quality", "probes.labels", "probes.judges"),
    "tables only": ("probes.rtsi", "probes.matrix", "probes.predict", "probes.reproduce"),
    "all of it": ("probes.check", "probes.study", "probes.report", "probes.demo", "probes.real"),
    "models": ("interp.inspect", "interp.quantize", "interp.dequantize", "interp.organisms"),
}
"""Modules with a command, `python -m MODULE`, as the README groups them; the first line of a module's docstring says
what it answers."""
MODULES = {module.partition(".")[2]: module for modules in GROUPS.values() for module in modules}
"""Command → its module."""
PROBES = tuple(name for name, module in MODULES.items() if module.startswith("probes."))
"""Commands of this package."""


def summary(module: str) -> str:
    """The first line of a module's docstring, read without importing it (torch takes seconds)."""
    docstring = ast.get_docstring(ast.parse(Path(_spec(module).origin or "").read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _spec(module: str) -> ModuleSpec:
    spec = find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"{module} is listed but not there")
    return spec


class _Commands(Mapping[str, Any]):
    """Command → what typer makes of its module, which is imported only when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        module, spec = MODULES[name], _spec(MODULES[name])
        entry = module if spec.submodule_search_locations is None else f"{module}.__main__"
        command = typer.main.get_command(import_module(entry).app)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


class Quantscope(TyperGroup):
    """A group whose commands are imported when they are called, and listed by what their docstrings say."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without arguments it lists the commands."""
        return super().parse_args(ctx, args or ["--help"])

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the README's order."""
        return list(MODULES)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands under the README's headings."""
        width = max(map(len, MODULES))
        for heading, modules in GROUPS.items():
            with formatter.section(heading.capitalize()):
                formatter.write_dl([(f"{module.partition('.')[2]:{width}}", summary(module)) for module in modules])


app = typer.Typer(cls=Quantscope, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(epilog="Options of a command: quantscope COMMAND --help")
def _group() -> None:
    """A microscope for one question: why does a quantized language model stop refusing?"""


def main() -> None:
    """Run the command that the arguments name."""
    cli.run(app)


if __name__ == "__main__":
    main()
