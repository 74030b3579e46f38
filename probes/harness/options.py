"""The command-line options that all probes share, and what a command does after measuring."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp import cli
from interp.chat import ChatTemplate
from interp.errors import InputError
from interp.system_prompts import system_prompt
from probes.harness.following import following
from probes.harness.names import derived_name, is_url, name_problem
from probes.harness.prompts import PromptSet, builtin, read_prompts

if TYPE_CHECKING:  # torch and pandas take seconds, and `--help` needs neither
    from rich.console import RenderableType

    from interp.model import HookedModel
    from probes.harness.comparison import Cells
    from probes.harness.results import Result


class Dtype(StrEnum):
    """In what both models of a pair compute."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every probe can be told on the command line."""

    baseline: Annotated[
        str, typer.Option(metavar="PATH", help="The unquantized checkpoint: a directory, a .gguf file or a hub id.")
    ]
    quantized: Annotated[
        list[str], typer.Option(metavar="[NAME=]PATH", help="A quantized copy of it; give the option again for more.")
    ]
    harmful: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests that should be refused.", show_default="built in")
    ] = None
    harmless: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests that should be answered.", show_default="built in")
    ] = None
    template: Annotated[
        str,
        typer.Option(
            metavar="auto|closed-thought|none|FILE",
            help="The model's own chat template, the same and a thought that is over, raw text, or a Jinja file.",
        ),
    ] = "auto"
    system: Annotated[
        str,
        typer.Option(
            metavar="auto|none|TEXT|FILE",
            help="The system prompt: what the template inserts itself, nothing in its place, or this one.",
        ),
    ] = "auto"
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use N prompts of each set.", show_default="all")
    ] = None
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the parquet and JSON files go.")] = Path("results")
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")] = False
    wide: cli.Wide = False
    force: Annotated[bool, typer.Option("--force", help="Measure cells that do not belong to the baseline.")] = False
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Of all models.", show_default="float32 on the CPU, else the baseline's own"),
    ] = None
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="For example cuda.", show_default="cpu")] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Prompts per forward pass.", show_default="by length")
    ] = None
    stream: Annotated[
        bool | None,
        typer.Option(
            help="Hold one block of weights at a time, read when it is needed.",
            show_default="where the pair would not fit into memory",
        ),
    ] = None

    def inputs(self) -> tuple[HookedModel, Cells, PromptSet, PromptSet]:
        """The first four arguments of every probe's `measure`: baseline, cells (still closed), harmful, harmless.

        Raises:
            InputError: results cannot be written; a prompt file cannot be used; a path is no checkpoint; two cells have
                one name.
        """
        import torch

        from interp.memory import settle_heap
        from interp.threads import fit_threads
        from probes.harness.comparison import Cells
        from probes.harness.opening import open_model

        check_writable(self.out)
        paths = cell_paths(self.quantized)
        harmful, harmless = self._prompts()
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        settle_heap()
        baseline = open_model(self.baseline, dtype, self.device, self.stream)
        fit_threads(baseline)
        return baseline, Cells(paths, baseline, self.device), harmful, harmless

    def _prompts(self) -> tuple[PromptSet, PromptSet]:
        harmful = builtin("harmful") if self.harmful is None else read_prompts(self.harmful)
        harmless = builtin("harmless") if self.harmless is None else read_prompts(self.harmless)
        return (harmful, harmless) if self.limit is None else (harmful.take(self.limit), harmless.take(self.limit))

    def pair(self) -> list[str]:
        """The arguments that name baseline, cells and prompts, for another probe of the same pair."""
        options = [("--baseline", self.baseline), *(("--quantized", cell) for cell in self.quantized)]
        options += [(f"--{name}", str(getattr(self, name))) for name in ("harmful", "harmless") if getattr(self, name)]
        options += [
            (f"--{name}", getattr(self, name)) for name in ("template", "system") if getattr(self, name) != "auto"
        ]
        return [part for option in options for part in option]

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """How requests are rendered.

        Raises:
            InputError: a system prompt that is empty, or a file of one that cannot be read.
        """
        return ChatTemplate(self.template, system_prompt(self.system))

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that every probe's `measure` has."""
        return {"template": self.chat_template, "force": self.force, "batch_size": self.batch_size}


NOT_STREAMED: Mapping[str, Any] = MappingProxyType({"stream": False})
"""For commands that compute gradients or generate much, and so need the whole model."""


def with_options(
    command: Callable[..., None], without: Mapping[str, Any] = NOT_STREAMED, **defaults: Any
) -> Callable[..., None]:
    """Give a command the options of `Options` beside its own: `command(options, **own)`.

    Args:
        command: takes the options first.
        without: common options that this command does not have, and what they are then.
        defaults: of common options that this command can do without.
    """
    signature = inspect.signature(Options, eval_str=True).parameters
    common = {
        name: p.replace(default=defaults.get(name, p.default)) for name, p in signature.items() if name not in without
    }
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        options = Options(**{name: values.pop(name) for name in common}, **without)
        command(options, **values)

    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*common.values(), *own)]
    wrapper.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return wrapper


with_streaming = functools.partial(with_options, without={})
"""`with_options` for commands that take what they need in a few passes of all prompts: they have `--stream`, too."""


def cell_paths(given: list[str]) -> dict[str, str]:
    """`NAME=PATH` or `PATH` (named after its last part, without .gguf) → {name: path}.

    Raises:
        InputError: a name that no cell can have, see `probes.harness.names`, or that two have.
    """
    paths: dict[str, str] = {}
    for argument in given:
        name, separator, path = argument.partition("=")
        if not separator or is_url(argument) or Path(argument).exists():
            path = argument
            name = derived_name(argument if is_url(argument) else str(Path(argument).resolve()))
        if problem := name_problem(name):
            raise InputError(f"The cell {path}: {problem}", do="Name it with --quantized NAME=PATH")
        if name in paths:
            raise InputError(
                f"Two cells are named {name!r}: {paths[name]} and {path}",
                "one name for each",
                "Name them with --quantized NAME=PATH",
            )
        paths[name] = path
    return paths


def check_writable(directory: Path) -> None:
    """Find out before an hour of measuring, not after, that results cannot be written.

    Raises:
        InputError: the directory, or the one it would be made in, cannot be written.
    """
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = "is not a directory" if not existing.is_dir() else "cannot be written"
        raise InputError(
            f"Results cannot go to {directory}: {existing} {problem}",
            "a directory that can be written",
            "Give another one with --out",
        )


def publish(
    result: Result,
    rendered: RenderableType,
    out: Path,
    as_json: bool,
    beside: Iterable[Result] = (),
    then: Iterable[Sequence[object]] = (),
) -> None:
    """Write a result, print it, repeat its warnings, and say what was written and what to run next.

    Args:
        result: of the command.
        rendered: what is printed of it.
        out: directory to write into.
        as_json: print the result as JSON instead.
        beside: further results, written after it; may be computed as they are asked for.
        then: the commands that follow, see `interp.cli.ending`.
    """
    written = result.write(out)
    for further in beside:
        further.write(out)
    if as_json:
        typer.echo(result.to_json())
    else:
        cli.console.print(rendered)
    for warning in result.warnings:
        cli.warn(warning)
    cli.ending(written, then)


def finish(result: Result, rendered: RenderableType, options: Options, beside: Iterable[Result] = ()) -> None:
    """Write a result, print it, repeat its warnings, say what follows, and end with exit code 4 if no cell could be
    measured.

    Args:
        result: of the command.
        rendered: what is printed of it.
        options: of the command.
        beside: further results, written after it; may be computed as they are asked for.
    """
    cells = result.table.loc[result.table["cell"] != "baseline"]
    nothing = bool((cells["reason"] != "").all())
    then = () if nothing else following(result.probe, options.pair(), options.out)
    publish(result, rendered, options.out, options.as_json, beside, then)
    if nothing:
        raise typer.Exit(cli.Exit.NOTHING_MEASURED)
