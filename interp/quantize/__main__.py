"""The command `python -m interp.quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from interp.quantize.settings import BITS, LADDER

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    baseline: Annotated[Path, typer.Option(metavar="PATH", help="A dense checkpoint directory.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the cells go, each into a directory of its own.")],
    cells: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(LADDER),
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts for AWQ and GPTQ: one a line, or .jsonl with `text`.",
            show_default="built-in chats",
        ),
    ] = None,
    f16: Annotated[Path | None, typer.Option(metavar="FILE", help="The baseline as an F16 GGUF file.")] = None,
    converter: Annotated[
        Path | None, typer.Option(metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py, for other architectures.")
    ] = None,
    keep: Annotated[
        list[str], typer.Option(metavar="LINEAR", help="A linear that stays in float16; give it again for more.")
    ] = [],  # noqa: B006
    group_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Inputs per scale of AWQ and GPTQ; −1: one group a row.",
            show_default="the largest of 128, 64, 32 that divides all inputs",
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Of GPTQ: 2, 3, 4 or 8; AWQ has 4.")] = BITS,
    writer: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="autoawq for AWQ, autogptq for GPTQ, the writers of 2024 (`make legacy`); give it again for both.",
            show_default="gptqmodel",
        ),
    ] = [],  # noqa: B006
) -> None:
    """Write the quantized cells of a baseline, those that are not up to date."""
    import sys

    from interp.progress import Stages
    from interp.quantize.calibration import calibration_of
    from interp.quantize.cells import read_record
    from interp.quantize.settings import KINDS
    from interp.quantize.write import check_cells, check_writers, write_cells

    cell_names = [cell.strip() for cell in cells.split(",") if cell.strip()]
    check_cells(cell_names)
    check_writers(writer, cell_names)
    texts = calibration_of(baseline, calibration) if set(cell_names) - set(KINDS) else []
    with Stages() as stages:
        written = write_cells(
            baseline,
            out,
            texts,
            cell_names,
            stages.show,
            f16=f16,
            converter=converter,
            keep=keep,
            group_size=group_size,
            bits=bits,
            writers=writer,
        )
    for cell, path in written.items():
        print(f"{cell}\t{path}")
        for note in record.notes if (record := read_record(path)) else ():
            print(f"warning: {cell}: {note}", file=sys.stderr)
    pair = [
        "--baseline",
        baseline,
        *(part for cell, path in written.items() for part in ("--quantized", f"{cell}={path}")),
    ]
    cli.ending([], [["probes.margin", *pair], ["probes.refusal", *pair]])


if __name__ == "__main__":
    cli.run(app)
