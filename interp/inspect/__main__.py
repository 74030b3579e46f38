"""The command `python -m interp.inspect`."""

from __future__ import annotations

import json
from threading import Thread
from typing import Annotated

import typer

from interp import cli

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
    """What a checkpoint is: format, bits, writer, what is quantized, tokenizer, template, memory; is it a pair?"""
    from interp.templates import warm

    Thread(target=warm, daemon=True).start()  # while torch is loaded here
    from interp.checkpoint import open_checkpoint
    from interp.inspect.pair import summarize_pair
    from interp.inspect.summary import summarize

    opened = [open_checkpoint(source) for source in (path, other) if source is not None]
    summaries = [summarize(checkpoint) for checkpoint in opened]
    pair = summarize_pair(*opened) if len(opened) > 1 else None
    if as_json:
        about = {
            "checkpoints": [summary.as_dict() for summary in summaries],
            "pair": None if pair is None else pair.as_dict(),
        }
        typer.echo(json.dumps(about, indent=2))
        return
    typer.echo("\n\n".join(map(str, [*summaries, *([] if pair is None else [pair])])))
    cli.ending([], [["probes.margin", "--baseline", path, "--quantized", other or "PATH"]])


if __name__ == "__main__":
    cli.run(app)
