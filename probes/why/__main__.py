"""The command `python -m probes.why`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from probes.harness.options import Options, with_options
from probes.margin.settings import Source
from probes.why.settings import DRAWS, PROMPTS, SETS, SHARE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    keep: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Linears to keep.", show_default="as few as --share needs")
    ] = None,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of the shift, to be given back by the list.")] = SHARE,
    fused: Annotated[
        bool, typer.Option("--fused", help="Keep q, k, v and gate, up together, as vLLM needs them.")
    ] = False,
    prompts: Annotated[int, typer.Option(min=2, help="Of each side, to measure on; the rest chooses.")] = PROMPTS,
    draws: Annotated[int, typer.Option(min=1, help="Random lists beside every length.")] = DRAWS,
    again: Annotated[
        bool, typer.Option("--rewrite", help="Write the cell again with the list, and with random lists; measure both.")
    ] = False,
    sets: Annotated[int, typer.Option(min=1, help="Random lists that are written; 19 for a p of 0.05.")] = SETS,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Texts to write AWQ and GPTQ with.", show_default="an organism's own"),
    ] = None,
    openings: Annotated[Source, typer.Option(help="Whose refusal openings.")] = "baseline",
    seed: Annotated[int, typer.Option(min=0, help="Of the random lists.")] = 0,
) -> None:
    """Why a cell refuses less: the shift, the linears to blame, what restoring them gives, what to keep."""
    from rich.console import Group
    from rich.text import Text

    from interp.quantize.calibration import calibration_of
    from probes.harness.options import finish
    from probes.harness.pieces import keeping
    from probes.why.probe import Rewriting, measure

    inputs = baseline, *_ = options.inputs()
    assert baseline.checkpoint is not None
    texts = calibration_of(baseline.checkpoint.path, calibration, baseline.tokenizer) if again else []
    rewriting = Rewriting(options.out / "cells", texts, sets) if again else None
    with keeping(options.out):
        result = measure(
            *inputs, keep=keep, share=share, fused=fused, prompts=prompts, draws=draws, seed=seed, rewriting=rewriting,
            openings=openings, beside=options.out, **options.settings(),
        )  # fmt: skip
        for text in result.pages.values() if not options.as_json else ():
            cli.console.print(text, markup=False, highlight=False, soft_wrap=True)  # lists stay whole, to be copied
        missing = result.table[result.table["reason"] != ""]
        finish(result, Group(*(Text(f"{row['cell']}: {row['reason']}") for _, row in missing.iterrows())), options)


if __name__ == "__main__":
    cli.run(app)
