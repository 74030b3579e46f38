"""The command `python -m probes.direction`."""

from __future__ import annotations

import typer

from interp import cli
from probes.harness import tables
from probes.harness.options import Options, with_streaming

COLUMNS: tables.Columns = {
    "cell": tables.text("cell"),
    "layer": tables.number("layer", "d"),
    "study": lambda row: "◀" if row["study_layer"] == 1 else "",
    "norm": tables.number("norm", ".3f"),
    "norm ratio": tables.number("norm_ratio", ".3f"),
    "cosine": tables.number("cosine", ".4f"),
}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@with_streaming
def main(options: Options) -> None:
    """The refusal direction at every layer: norm, and cosine to the baseline's (◀ marks the study's layer)."""
    from probes.direction.probe import measure
    from probes.harness.options import finish

    result = measure(*options.inputs(), **options.settings())
    n = {side: about["n"] for side, about in result.settings["prompts"].items()}
    title = f"Refusal direction of {n['harmful']} harmful against {n['harmless']} harmless prompts"
    finish(result, tables.render(title, result.table, COLUMNS), options)


if __name__ == "__main__":
    cli.run(app)
