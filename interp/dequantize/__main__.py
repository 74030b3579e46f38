"""The command `python -m interp.dequantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from interp.dequantize.settings import SHARD_GB, ExportDtype

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    checkpoint: Annotated[str, typer.Argument(help="A directory, a .gguf file or a hub id.")],
    out: Annotated[Path, typer.Argument(help="The new directory.")],
    dtype: Annotated[
        ExportDtype, typer.Option(help="exact: the narrowest type that holds every number as it is.")
    ] = ExportDtype.EXACT,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Take config and tokenizer of a GGUF from here.", show_default="its own metadata"
        ),
    ] = None,
    shard_size: Annotated[float, typer.Option(min=0.001, metavar="GB", help="Of a file of weights.")] = SHARD_GB,
) -> None:
    """Write a checkpoint of any format as a dense Hugging Face directory, and verify every tensor of it."""
    from interp.checkpoint import open_checkpoint
    from interp.progress import bar

    opened = open_checkpoint(checkpoint)
    beside = None if like is None else open_checkpoint(like)
    with bar("tensors written and read again") as show:
        record = opened.export(
            out, dtype, like=beside, shard_gb=shard_size, report=lambda done, total: show(done / total)
        )
    facts = record.details
    cli.log.print(
        f"written and verified: {facts['tensors']} tensors in {facts['dtype']}, {facts['bytes'] / 1e6:.1f} MB",
        highlight=False,
    )
    for note in record.notes:
        cli.warn(note)
    print(out)
    cli.ending([], [["interp.quantize", "--baseline", out, "--out", "cells"]])


if __name__ == "__main__":
    cli.run(app)
