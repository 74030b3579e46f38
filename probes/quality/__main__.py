"""The command `python -m probes.quality`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_options
from probes.quality.settings import MAX_NEW_TOKENS

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "metric": tables.text("metric"),
    "against": tables.text("against"),
    "n": tables.number("n", "d"),
    "value": tables.interval("value", ".4f"),
}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_options
def main(
    options: Options,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to predict.", show_default="the references")
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON lines: requests with references.", show_default="the baseline's own answers"
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="PATH", help="Of BERTScore and coherence.", show_default="the baseline")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut.")] = MAX_NEW_TOKENS,
) -> None:
    """Perplexity, KL, flips, ROUGE-L, BERTScore, coherence and repetition of every cell."""
    from rich.console import Group
    from rich.text import Text

    from interp.documents import read_text
    from interp.errors import InputError
    from interp.files import sha256
    from probes.harness.options import finish
    from probes.quality.probe import TASK_SIZE, default_task, measure, read_task
    from probes.quality.text_metrics import load_encoder

    if options.harmful is not None or (options.harmless is not None and references is not None):
        raise InputError(
            "Quality is measured on --references, or on --harmless without any",
            do="Give requests with --references, or the harmless prompts alone",
        )
    text_to_predict = None if text is None else read_text(text)
    task = None if references is None else read_task(references, options.limit)
    baseline, cells, _, harmless = options.inputs()
    task = task or default_task(baseline, harmless, options.limit or TASK_SIZE)
    text_encoder = None if encoder is None else load_encoder(encoder, options.device)
    result = measure(
        baseline,
        cells,
        task,
        text=text_to_predict,
        encoder=text_encoder,
        template=options.chat_template,
        force=options.force,
        max_new_tokens=max_new_tokens,
    )
    files = {"text_sha256": text, "references_sha256": references}
    result.settings = {**result.settings, **{name: sha256(file) for name, file in files.items() if file}}
    notes = (
        f"Requests: {result.settings['task']['name']}",
        f"BERTScore and coherence with: {result.settings['encoder']}",
    )
    finish(result, Group(tables.render("Quality", result.table, COLUMNS), *map(Text, notes)), options)


if __name__ == "__main__":
    cli.run(app)
