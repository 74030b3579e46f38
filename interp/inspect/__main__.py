"""The command `python -m interp.inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from interp import cli
from interp.errors import InputError

if TYPE_CHECKING:
    from interp.checkpoint import Checkpoint
    from interp.inspect.pair import PairSummary
    from interp.inspect.summary import Summary

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory, a .gguf file or a hub id.")],
    other: Annotated[
        str | None,
        typer.Argument(metavar="[OTHER]", help="A quantized copy of it: are they a pair?", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """What a checkpoint is: format, bits, writer, what is quantized, tokenizer, template, memory; is it a pair?

    Two that are no pair end with exit code 2.
    """
    pair = None
    if other is None:
        summaries = [_summary(path)]
    else:
        opened = [_open(source) for source in (path, other)]
        summaries = [checkpoint.summary() for checkpoint in opened]
        pair = _pair(*opened)
    if as_json:
        about = {
            "checkpoints": [summary.as_dict() for summary in summaries],
            "pair": None if pair is None else pair.as_dict(),
        }
        typer.echo(json.dumps(about, indent=2))
    else:
        typer.echo("\n\n".join(map(str, [*summaries, *([] if pair is None else [pair])])))
    if pair is not None and not pair.is_pair:
        _refuse(pair, path, other)
    if not as_json:
        cli.ending([], [["probes.margin", "--baseline", path, "--quantized", other or "PATH"]])


def _summary(path: str) -> Summary:
    """From headers where they are enough; else the checkpoint is opened, which takes seconds."""
    from interp.hub import resolve
    from interp.inspect.headers import summary_of_headers

    return summary_of_headers(_stored(resolve(path))) or _open(path).summary()


def _stored(path: Path) -> Path:
    """The .gguf file of a directory that holds nothing but one."""
    files = [] if (path / "config.json").exists() else list(path.glob("*.gguf"))
    return files[0] if len(files) == 1 else path


def _open(source: str) -> Checkpoint:
    from interp.templates import warm

    Thread(target=warm, daemon=True).start()  # while torch is loaded here
    from interp.checkpoint import open_checkpoint

    return open_checkpoint(source)


def _pair(baseline: Checkpoint, cell: Checkpoint) -> PairSummary:
    from interp.inspect.pair import (
        summarize_pair,  # late: weights are compared with libraries that take seconds to load
    )

    return summarize_pair(baseline, cell)


def _refuse(pair: PairSummary, path: str, other: str | None) -> NoReturn:
    """Two checkpoints that no command takes as baseline and cell are bad input.

    Raises:
        InputError: why they are no pair, and what to do.
    """
    if pair.swapped:
        raise InputError(f"{path} is a quantization of {other}", "the baseline first", "Exchange the two")
    raise InputError(
        f"{other} is no quantization of {path}", "a baseline and its quantized copy", "The reason is above"
    )


if __name__ == "__main__":
    cli.run(app)
