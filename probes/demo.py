"""The main job on the embedded default: train a tiny chat model, quantize it eight ways, measure all nine cells.

A study (`probes.study`) of one organism, or of all four; a second run measures nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from interp.errors import InputError
from interp.organisms.settings import ARCHITECTURES
from interp.quantize.settings import LADDER

ALL = "all"
WRITERS = {"gptqmodel": "gptqmodel", "llama_cpp": "llama-cpp-python"}
"""Module → package, of the extras `quantize` and `gguf`."""


def study_text(architectures: Sequence[str], seed: int) -> str:
    """The study file of organisms, each with every cell that can be written."""
    cells = ", ".join(f'"{cell}"' for cell in LADDER)
    return "\n".join(
        f'[[models]]\nname = "{name}"\norganism = "{name}"\nseed = {seed}\nquantize = [{cells}]\n'
        for name in architectures
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    architecture: Annotated[str, typer.Option(help=f"{', '.join(ARCHITECTURES)}, or {ALL}.")] = "llama",
    seed: Annotated[int, typer.Option(min=0, help="Of the organism.")] = 0,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder.")] = Path("runs/demo"),
    wide: cli.Wide = False,
) -> None:
    """Train a tiny chat model, quantize it eight ways, probe all nine cells, print one matrix and write a report."""
    from interp.quantize.cells import need
    from probes.study.reader import parse_study
    from probes.study.run import run_study
    from probes.study.terminal import exit_code, show

    for module, package in WRITERS.items():
        need(module, package, "quantize,gguf", "Writing the demo's cells")
    if architecture not in (*ARCHITECTURES, ALL):
        raise InputError(f"There is no organism {architecture!r}", f"one of {', '.join((*ARCHITECTURES, ALL))}")
    chosen = list(ARCHITECTURES) if architecture == ALL else [architecture]
    found = run_study(parse_study(study_text(chosen, seed), Path.cwd(), "the demo"), out)
    show(found)
    raise typer.Exit(exit_code(found))


if __name__ == "__main__":
    cli.run(app)
